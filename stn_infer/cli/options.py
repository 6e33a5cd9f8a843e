"""Options that several commands share, so that a name has the same meaning everywhere.

Each is a decorator; the ones that take arguments are functions that return a decorator::

    @click.command()
    @options.model_argument
    @options.device_option
    @options.backend_option("ort", "eager")
    def command(model: str, device: str, backend: str) -> None: ...
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import click

from stn_infer.activation import ACTIVATIONS
from stn_infer.cli.help import READ
from stn_infer.cli.terminal.completion import CHECKPOINTS, complete_files, complete_source
from stn_infer.errors import UsageError
from stn_infer.metadata import FUNCTIONS

Shapes = tuple[tuple[int, ...], ...]
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Decorator = Callable[[F], F]


class FiniteRange(click.FloatRange):
    """Finite numbers in a range; click's own accepts ``nan``, which is in every range, and ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error if it is not finite, or out of range."""
        found: float = super().convert(value, param, ctx)
        if not isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return found


def _check_device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", value) is None:
        raise UsageError(f"--device is cpu, cuda or cuda:N, not {value!r}")
    return "cuda:0" if value == "cuda" else value


def load_labels(path: Path) -> tuple[str, ...]:
    """Read the class names in ``path``, one per line, in the order of the classes; blank lines at the end are ignored.

    Raises:
        UsageError: the file cannot be read, or contains no name.
    """
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--labels takes a text file with one name per line; cannot read {path}: {reason}") from None
    while labels and not labels[-1].strip():
        labels = labels[:-1]
    if not labels:
        raise UsageError(f"--labels takes a text file with one name per line; {path} is empty")
    return labels


def _read_labels(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> tuple[str, ...] | None:
    return None if value is None else load_labels(_noted(ctx, parameter, value))


def _noted(ctx: click.Context, parameter: click.Parameter, value: T) -> T:
    """The value, which may name a file that the command does not write over."""
    ctx.meta.setdefault(READ, []).append(value)
    return value


def _parse_shapes(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Shapes | None:
    if ctx.resilient_parsing:  # the shell completes another word
        return None
    from stn_infer.sources.load import parse_input_shapes

    return parse_input_shapes(value) or None


def local_path(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback: a file on the Hub as its path in the cache, any other value as it is."""
    if ctx.resilient_parsing:  # the shell completes another word: nothing is downloaded
        return value
    from stn_infer.sources.hub import local

    return None if value is None else str(local(value))


def _numbers(kind: type) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...]:
        try:
            return tuple(kind(text) for text in value.split(",")) if value else ()
        except ValueError:
            what = "integers" if kind is int else "numbers"
            raise UsageError(
                f"{parameter.opts[0]} takes {what} separated by commas, such as 1,64; got {value!r}"
            ) from None

    return parse


#: Callbacks: numbers separated by commas as a tuple, which is empty when nothing is given.
integers = _numbers(int)
numbers = _numbers(float)


#: ``model``: the SOURCE, as a string; a file on the Hub as its path in the cache.
model_argument: Decorator[Any] = click.argument(
    "model", metavar="SOURCE", callback=local_path, shell_complete=complete_source()
)

#: ``device``: "cpu" or "cuda:N".
device_option: Decorator[Any] = click.option(
    "--device", default="cpu", show_default=True, callback=_check_device, help="Device to run on: cpu, cuda or cuda:N."
)


def gpu_option(what: str) -> Decorator[Any]:
    """``device``: "cuda" or "cuda:N", for commands that need a GPU; ``what`` is done on it."""
    return click.option("--device", default="cuda", show_default=True, help=f"GPU to {what} on: cuda or cuda:N.")


_weights_option: Decorator[Any] = click.option(
    "--weights",
    metavar="FILE[#KEY]",
    shell_complete=complete_files(*CHECKPOINTS),
    help="Checkpoint with SOURCE's weights: .safetensors, or .pt/.pth with tensors only. KEY is the part to take, such "
    "as state_dict_ema.",
)
_ignore_extra_option: Decorator[Any] = click.option(
    "--ignore-extra",
    is_flag=True,
    help="Leave out tensors of the checkpoint that SOURCE lacks, such as heads for training.",
)

#: ``input_shapes``: tuple of shapes, one per input; None when not given.
input_shape_option: Decorator[Any] = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="C,H,W",
    callback=_parse_shapes,
    help="Shape of one sample, without the batch; required for a factory; repeatable, once per input.",
)


#: ``allow_code``: bool.
allow_code_option: Decorator[Any] = click.option(
    "--allow-code",
    is_flag=True,
    help="Let a file, such as a model config, name Python code (package.module:factory) that is imported and run.",
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """``weights`` (Weights or None), ``input_shapes`` and ``allow_code``, which apply to SOURCE in every command."""

    @functools.wraps(command)
    def with_weights(*arguments: Any, weights: str | None, ignore_extra: bool, **named: Any) -> None:
        from stn_infer.sources.reference import Weights

        if ignore_extra and weights is None:
            raise UsageError("--ignore-extra is about the checkpoint that --weights names; give it too")
        given = None if weights is None else Weights.of(weights)
        if given is not None and ignore_extra:
            given = replace(given, ignore_extra=True)
        command(*arguments, weights=given, **named)

    decorated: Callable[..., None] = with_weights
    for option in (allow_code_option, input_shape_option, _ignore_extra_option, _weights_option):
        decorated = option(decorated)
    return decorated


def trial_options(command: Callable[..., None]) -> Callable[..., None]:
    """``budget``: limits for the analysis of an ONNX file, or None; for commands that take one."""

    @click.option(
        "--trial-seconds",
        type=float,
        metavar="SECONDS",
        help="CPU time for the analysis of an ONNX file that was not seen before; 0: none, for files that you trust.  "
        "[default: $STN_TRIAL_SECONDS or 60]",
    )
    @click.option(
        "--trial-memory",
        type=float,
        metavar="GIB",
        help="Memory for the analysis, on top of the weights.  [default: $STN_TRIAL_GIB or 4]",
    )
    @functools.wraps(command)
    def with_budget(*arguments: Any, trial_seconds: float | None, trial_memory: float | None, **named: Any) -> None:
        from stn_infer.budget import Budget

        command(*arguments, budget=Budget.given(trial_seconds, trial_memory), **named)

    return with_budget


#: ``source``: str or None.
original_option: Decorator[Any] = click.option(
    "--source",
    metavar="SOURCE",
    shell_complete=complete_source(),
    help="Source that an ONNX file was exported from, to which --weights then apply; known for shipped models.",
)

#: ``preprocess``: the text, for ``Preprocess.parse`` or ``Preprocess.updated``; None when not given.
preprocess_option: Decorator[Any] = click.option(
    "--preprocess",
    callback=_noted,
    metavar="KEY=VALUE,...",
    help="How images become inputs: imagenet, 0..1, -1..1; gray, rgb or bgr; size=HxW, crop=HxW, "
    "resize=stretch|shortest|longest, interpolation=bilinear, scale=1/255, mean=a,b,c, std=a,b,c, gamma=1, "
    "exif=apply|ignore, jpeg=exact|scaled|nvimgcodec, background=white, pad=black; or a config file of timm or "
    "Hugging Face.",
)


def _parse_area(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = re.fullmatch(r"(\d+)x(\d+)", value)
    if sides is None:
        raise UsageError(f"--source-size is HEIGHTxWIDTH such as 480x640, not {value!r}")
    return int(sides[1]), int(sides[2])


def embed_options(command: F) -> F:
    """``embed_preprocess`` and ``source_size``."""
    flag = click.option(
        "--embed-preprocess",
        is_flag=True,
        help="Put the preprocessing into the graph: the input is uint8 [N, H, W, C].",
    )
    size = click.option(
        "--source-size",
        metavar="HxW",
        callback=_parse_area,
        help="With --embed-preprocess, the size of all pictures, which the graph then resizes.",
    )
    decorated: F = flag(size(command))
    return decorated


#: ``strict``: bool.
strict_option: Decorator[Any] = click.option(
    "--strict", is_flag=True, help="An error, not a warning, where nothing says how images become inputs."
)

#: ``labels``: tuple of class names, read from the file given; None when not given.
labels_option: Decorator[Any] = click.option(
    "--labels",
    type=click.Path(path_type=Path),
    shell_complete=complete_files(".txt"),
    callback=_read_labels,
    help="Text file with the name of each class, one per line.",
)

#: ``activation``: "softmax", "sigmoid", "none", or None when not given.
activation_option: Decorator[Any] = click.option(
    "--activation",
    type=click.Choice(ACTIVATIONS),
    help="What turns the scores of the classes into confidences; sigmoid: any number of classes can be right.  "
    "[default: as the file says, else its last operator, else softmax]",
)

#: ``top_k``: int or None.
top_k_option: Decorator[Any] = click.option(
    "--top-k", type=click.IntRange(min=1), metavar="K", help="Also show the K best classes."
)

#: ``functions``: "keep" or "inline".
functions_option: Decorator[Any] = click.option(
    "--functions",
    type=click.Choice(FUNCTIONS),
    default="keep",
    show_default=True,
    help="keep: ops of domain stn, which run fused where a kernel is registered; inline: plain operators only, for "
    "importers without model-local functions (OpenVINO, OpenCV, ncnn).",
)

#: ``threads``: int or None (the runtime's own choice).
threads_option: Decorator[Any] = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads on the CPU.  [default: one per physical core]"
)

#: ``seed``: int.
seed_option: Decorator[Any] = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers."
)


def backend_option(*names: str) -> Decorator[Any]:
    """``backend``: one of ``names``; the first is the default."""
    return click.option(
        "--backend", type=click.Choice(names), default=names[0], show_default=True, help="Runtime that runs the model."
    )


def batch_size_option(default: int) -> Decorator[Any]:
    """``batch_size``: int, at least 1."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Samples per call of the model.",
    )


def batch_sizes_option(default: str) -> Decorator[Any]:
    """``batch_sizes``: tuple of int."""
    return click.option(
        "--batch-sizes",
        "--batch-size",
        default=default,
        show_default=True,
        callback=integers,
        metavar="N,...",
        help="Samples per call; each batch size is measured separately.",
    )


def output_option(help: str, *, required: bool = True, folder: bool = False) -> Decorator[Any]:
    """``output`` (``-o``): Path of the file or the folder to write; None if it is optional and not given."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, dir_okay=folder, file_okay=not folder),
        required=required,
        help=help,
    )
