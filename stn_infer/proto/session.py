"""The one place that opens an onnxruntime session, runs it, and words what onnxruntime answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from stn_infer.arrays import Array
from stn_infer.errors import MissingDependencyError, ModelError, one_line

Spin = Literal["always", "while-running", "never"]

#: A provider's name, or its name and options, as onnxruntime takes them.
Provider = str | tuple[str, dict[str, Any]]

CPU: tuple[Provider, ...] = ("CPUExecutionProvider",)

_MOST_SHAPES = 4


@dataclass(frozen=True)
class Stored:
    """A model, and the folder its external data lie in."""

    model: onnx.ModelProto
    folder: Path | None = None


class Session:
    """An open onnxruntime session; threads may share it.

    Attributes:
        raw: onnxruntime's own session, for bindings and profiles.
        label: what messages call the model.
        inputs, outputs: names in the model's order.
        providers: those that the session really has, in the order of preference.
    """

    def __init__(self, raw: Any, label: str) -> None:
        self.raw, self.label = raw, label
        self.inputs: list[str] = [value.name for value in raw.get_inputs()]
        self.outputs: list[str] = [value.name for value in raw.get_outputs()]
        self.providers: list[str] = raw.get_providers()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Any]:
        """Values of ``outputs`` (None: all, in the model's order) for inputs by name.

        Raises:
            ModelError: onnxruntime fails; says on which inputs.
        """
        try:
            found: list[Any] = self.raw.run(outputs, dict(feeds))
            return found
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise self.failure(error, feeds) from error

    def failure(self, error: BaseException, feeds: Mapping[str, Array] | None = None) -> ModelError:
        """What to raise for an error of onnxruntime's while it ran this session on ``feeds``."""
        given = [f"{name} {list(value.shape)}" for name, value in (feeds or {}).items() if hasattr(value, "shape")]
        more = [f"{len(given) - _MOST_SHAPES} more"] if len(given) > _MOST_SHAPES else []
        shapes = f" on {', '.join(given[:_MOST_SHAPES] + more)}" if given else ""
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
    """Open an onnxruntime session; nothing of onnxruntime's own is logged.

    Args:
        model: a file, the bytes of one, or a model in memory with the folder of its external data.
        label: what messages call it; None: the file's name, or ``the model``.
        optimized: whether onnxruntime may optimize the graph.
        threads: threads inside one operator; None: one per core.
        spin: when threads that wait for work spin: ``always``, ``while-running`` (they sleep while nothing runs) or
            ``never``.
        providers: execution providers in the order of preference.
        library: a library of custom operators to register.
        arena: whether memory is kept for the next run.
        profile: a folder for onnxruntime's profile and ``optimized.onnx``, the graph as it runs.

    Raises:
        ModelError: onnxruntime rejects the model.
        MissingDependencyError: onnxruntime cannot be imported.
    """
    ort = import_onnxruntime()
    label = label or (model.name if isinstance(model, Path) else "the model")
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
        # weights stay mapped from the file instead of being copied
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        content = str(model) if isinstance(model, Path) else model
        if isinstance(content, Stored):
            content = content.model.SerializeToString()
        return Session(ort.InferenceSession(content, options, providers=list(providers)), label)
    except Exception as error:  # protobuf's 2 GB limit among them
        raise ModelError(f"onnxruntime rejects {label}: {reason(error)}") from error


_FATAL = 4


def import_onnxruntime() -> Any:
    """The package, its own logging off: what matters is raised, or reported by us.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be imported ({error}); pip install onnxruntime-gpu"
        ) from error
    # a session's severity does not cover providers that fail to load
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
    """What onnxruntime says, on one line: without status codes, and without where in its source it was thrown."""
    text = _LOADING.sub("", _PREFIX.sub("", " ".join(str(error).split())))
    while found := _PLACE.search(text):
        text = text[: found.start()] + _CONDITION.sub("", _after_signature(text[found.end() :]))
    text = _NODE.sub(lambda found: f"{found[1]} node{f' {found[2]!r}' if found[2] else ''}: ", text)
    text = _CUDA_DETAILS.sub("", text)
    if isinstance(error, MemoryError):
        text = f"out of memory ({text})" if text else "out of memory"
    return one_line(text or error, _LONGEST)


def _after_signature(text: str) -> str:
    """What follows the C++ function that ``text`` starts with: its bare name, or all of its signature."""
    depth = 0
    opening = text.find("(")
    if opening < 1 or text[opening - 1] == " ":
        return text.partition(" ")[2]
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0 and text[position + 1 : position + 2] != "(":  # operator()(...) goes on
            suffixes = _SUFFIXES.match(text, position + 1)
            return text[suffixes.end() if suffixes else position + 1 :]
    return text
