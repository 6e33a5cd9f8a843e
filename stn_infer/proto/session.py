"""Opens and runs onnxruntime sessions, and formats onnxruntime's errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, ModelError, one_line
from stn_infer.extras import install

if TYPE_CHECKING:
    import onnx

Spin = Literal["always", "while-running", "never"]

#: A provider's name, or its name and options, in onnxruntime's form.
Provider = str | tuple[str, dict[str, Any]]

CPU: tuple[Provider, ...] = ("CPUExecutionProvider",)

_MAX_SHAPES = 4


@dataclass(frozen=True)
class Stored:
    """A model, and the folder of its external data."""

    model: onnx.ModelProto
    folder: Path | None = None


class Session:
    """An open onnxruntime session; threads may share it.

    Attributes:
        raw: the onnxruntime session, for bindings and profiles.
        label: the model's name in messages.
        inputs, outputs: names in the model's order.
        providers: the providers that the session actually uses, in order of preference.
    """

    def __init__(self, raw: Any, label: str) -> None:
        self.raw, self.label = raw, label
        self.inputs: list[str] = [value.name for value in raw.get_inputs()]
        self.outputs: list[str] = [value.name for value in raw.get_outputs()]
        self.providers: list[str] = raw.get_providers()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Any]:
        """Returns the values of ``outputs`` (None: all, in the model's order) for inputs by name.

        Raises:
            ModelError: onnxruntime fails; the message gives the input shapes.
        """
        try:
            found: list[Any] = self.raw.run(outputs, dict(feeds))
            return found
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise self.failure(error, feeds) from error

    def failure(self, error: BaseException, feeds: Mapping[str, Array] | None = None) -> ModelError:
        """Returns the exception to raise for an onnxruntime error in a run of this session on ``feeds``."""
        given = [f"{name} {list(value.shape)}" for name, value in (feeds or {}).items() if hasattr(value, "shape")]
        more = [f"{len(given) - _MAX_SHAPES} more"] if len(given) > _MAX_SHAPES else []
        shapes = f" on {', '.join(given[:_MAX_SHAPES] + more)}" if given else ""
        return ModelError(f"onnxruntime fails while running {self.label}{shapes}: {reason(error)}")


def open_session(
    model: Path | bytes | Stored,
    *,
    label: str | None = None,
    optimized: bool = True,
    threads: int | None = None,
    spin: Spin = "never",
    providers: Sequence[Provider] = CPU,
    library: Path | None = None,
    arena: bool = True,
    profile: Path | None = None,
) -> Session:
    """Opens an onnxruntime session with onnxruntime's logging disabled.

    Args:
        model: a file, the content of a file, or a model in memory with the folder of its external data.
        label: the model's name in messages; None: the file's name, or ``the model``.
        optimized: whether onnxruntime may optimize the graph.
        threads: threads per operator; None: one per core.
        spin: when threads that wait for work spin: ``always``, ``while-running`` (they sleep while nothing runs) or
            ``never``.
        providers: execution providers in order of preference.
        library: a library of custom operators to register.
        arena: whether memory is kept for the next run.
        profile: a folder for onnxruntime's profile and ``optimized.onnx``, the optimized graph.

    Raises:
        ModelError: onnxruntime rejects the model, or cannot open it, because its path is not valid UTF-8.
        MissingDependencyError: onnxruntime cannot be imported.
    """
    ort = import_onnxruntime()
    label = label or (model.name if isinstance(model, Path) else "the model")
    place = model if isinstance(model, Path) else model.folder if isinstance(model, Stored) else None
    if place is not None and not _is_utf8(str(place)):
        raise ModelError(f"onnxruntime cannot open {place}: its path is not valid UTF-8; rename it, or its folder")
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if spin == "never" else "1")
    options.add_session_config_entry("session.force_spinning_stop", "1" if spin == "while-running" else "0")
    options.enable_cpu_mem_arena = arena
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
        options.optimized_model_filepath = str(profile / "optimized.onnx")
    if isinstance(model, Stored) and model.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
        # Weights stay memory-mapped instead of being copied.
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        content = str(model) if isinstance(model, Path) else model
        if isinstance(content, Stored):
            content = content.model.SerializeToString()
        return Session(ort.InferenceSession(content, options, providers=list(providers)), label)
    except Exception as error:  # onnxruntime's exceptions, and protobuf's at its 2 GB limit
        raise ModelError(f"onnxruntime rejects {label}: {reason(error)}") from error


def _is_utf8(path: str) -> bool:
    """Whether a path has no bytes that Python could not decode."""
    return not any("\udc80" <= character <= "\udcff" for character in path)


_FATAL = 4


def import_onnxruntime() -> Any:
    """Returns the onnxruntime package with its logging disabled: this package raises or reports errors itself.

    Its telemetry is off unless the environment variable ``ORT_DISABLE_TELEMETRY`` says otherwise.

    Raises:
        MissingDependencyError: onnxruntime cannot be imported.
    """
    # Its packages send what sessions do to Microsoft, and leave files in TMPDIR and in the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported ({one_line(error)}); {install('cpu')}, or on a GPU {install('gpu')}"
        ) from error
    # A session's log severity does not apply to providers that fail to load.
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


_LONGEST = 500
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_LOADING = re.compile(
    r"^(?:Load model from .*? failed: ?|This is an invalid model\. |Exception during initialization: |"
    r"(?:Fatal )?Error: )+",
    re.IGNORECASE,
)
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
_PLACE = re.compile(r"\S+\.(?:h|hpp|cc|cpp|cu|cuh):\d+ ")
_SUFFIXES = re.compile(r"(?: const\b| noexcept\b| \[with [^\]]*\])* ?")
_CONDITION = re.compile(r"^.{1,300}? was false\. (?=\S)")
_CUDA_DETAILS = re.compile(r" ?; (?:GPU|hostname)=.*$")


def reason(error: BaseException | str) -> str:
    """Returns onnxruntime's error message on one line, without status codes and source locations."""
    text = _LOADING.sub("", _PREFIX.sub("", " ".join(str(error).split())))
    while found := _PLACE.search(text):
        text = text[: found.start()] + _CONDITION.sub("", _after_signature(text[found.end() :]))
    text = _NODE.sub(lambda found: f"{found[1]} node{f' {found[2]!r}' if found[2] else ''}: ", text)
    text = _CUDA_DETAILS.sub("", text)
    if isinstance(error, MemoryError):
        text = f"out of memory ({text})" if text else "out of memory"
    return one_line(text or error, _LONGEST)


def _after_signature(text: str) -> str:
    """Returns the text after the C++ function (bare name or full signature) that ``text`` starts with."""
    depth = 0
    opening = text.find("(")
    if opening < 1 or text[opening - 1] == " ":
        return text.partition(" ")[2]
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0 and text[position + 1 : position + 2] != "(":  # operator()(...) continues
            suffixes = _SUFFIXES.match(text, position + 1)
            return text[suffixes.end() if suffixes else position + 1 :]
    return text
