"""``stn-infer plugin``: inspect or build the plugin library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stn_infer.cli.help import Group
from stn_infer.cli.output import echo, emit
from stn_infer.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from stn_infer.plugin import PluginInfo


@click.group(cls=Group, examples=("stn-infer plugin info", "stn-infer plugin build --arch all"))
def command() -> None:
    """Inspect or build the plugin library, whose kernels run spatial transformers fused."""


@command.command(examples=("stn-infer plugin info", "STN_PLUGIN_LIBRARY=./libstn_plugins.so stn-infer plugin info"))
def info() -> None:
    """Report what the library supports on this machine, and how to get the rest."""
    from stn_infer import plugin

    found = plugin.info()
    emit(found, lambda: _print(found))


def _print(found: PluginInfo) -> None:
    if found.path is None:
        echo(f"library      none: {found.problem}")
        echo("             models run without it, through plain ONNX and PyTorch operators")
    else:
        echo(f"library      {found.path}")
        echo(f"version      {found.version}")
        echo(f"CPU kernels  {found.cpu_isa}")
        echo(f"CUDA kernels {_cuda_kernels(found.cuda)}")
        echo(f"onnxruntime  {'yes' if found.onnxruntime else 'no'}")
        echo(f"TensorRT     {'yes' if found.tensorrt else 'no'}")
    echo(f"OpenVINO     {_openvino()}")
    for name, tool, remedy in (
        ("cmake", found.cmake, "pip install cmake ninja"),
        ("c++", found.compiler, "install g++ or clang++"),
        ("nvcc", found.nvcc, f"pip install {' '.join(found.nvcc_packages)}"),
    ):
        echo(f"{name:<12} {tool or f'not found: {remedy}'}")


@command.command(examples=("stn-infer plugin path", "trtexec --onnx=m.onnx --dynamicPlugins=$(stn-infer plugin path)"))
def path() -> None:
    """Print the library's path.

    For onnxruntime's register_custom_ops_library or trtexec --dynamicPlugins.
    """
    from stn_infer import plugin

    _emit_path(plugin.library_path())


def _cuda_kernels(built: bool) -> str:
    """Whether the library contains them, and whether the first GPU runs them."""
    from stn_infer import plugin

    if not built:
        return "no: stn-infer plugin build --arch all builds them, with nvcc"
    problem = plugin.cuda_problem()
    return "yes, and cuda:0 runs them" if problem is None else f"yes, but {problem}"


def _openvino() -> str:
    """The extension's path, or why there is none."""
    from stn_infer.backends.openvino import extension

    try:
        return str(extension.find())
    except MissingDependencyError as error:
        return f"no: {error}"


@command.command(examples=("stn-infer plugin build --arch sm80,sm90", "stn-infer plugin build --openvino"))
@click.option(
    "--arch",
    default="native",
    show_default=True,
    metavar="native|all|smNN,...",
    help="GPU architectures to compile for; native: those in this machine, or all if it has none.",
)
@click.option(
    "--cuda/--no-cuda", default=None, help="With or without the CUDA kernels.  [default: with, if nvcc is found]"
)
@click.option(
    "--openvino",
    is_flag=True,
    help="Build the extension for the installed OpenVINO instead, into the user's cache; it needs the library.",
)
def build(arch: str, cuda: bool | None, openvino: bool) -> None:
    """Compile the library from its sources, which the package contains."""
    from stn_infer import plugin

    if openvino:
        from stn_infer.backends.openvino import extension

        if cuda is not None or arch != "native":
            raise UsageError("the OpenVINO extension has no CUDA kernels; omit --arch and --cuda")
        _emit_path(extension.build())
        return
    _emit_path(plugin.build(arch, cuda=cuda))


def _emit_path(path: Path) -> None:
    emit({"path": path}, lambda: echo(path))
