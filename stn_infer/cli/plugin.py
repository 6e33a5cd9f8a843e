"""``stn-infer plugin``: inspect or build the plugin library."""

from __future__ import annotations

import click

from stn_infer.cli.help import Group
from stn_infer.cli.output import echo


@click.group(cls=Group, examples=("stn-infer plugin info", "stn-infer plugin build --arch all"))
def command() -> None:
    """Inspect or build the plugin library, whose kernels run spatial transformers fused."""


@command.command(examples=("stn-infer plugin info", "STN_PLUGINS_LIBRARY=./libstn_plugins.so stn-infer plugin info"))
def info() -> None:
    """Report what the library supports on this machine, and how to get the rest."""
    from stn_infer import plugin

    found = plugin.info()
    if found.path is None:
        echo(f"library      none: {found.problem}")
        echo("             models run without it, through plain ONNX and PyTorch operators")
    else:
        echo(f"library      {found.path}")
        echo(f"version      {found.version}")
        echo(f"CPU kernels  {found.cpu_isa}")
        echo(f"CUDA kernels {'yes' if found.cuda else 'no: stn-infer plugin build --arch all builds them, with nvcc'}")
        echo(f"onnxruntime  {'yes' if found.onnxruntime else 'no'}")
        echo(f"TensorRT     {'yes' if found.tensorrt else 'no'}")
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

    echo(plugin.library_path())


@command.command(examples=("stn-infer plugin build", "stn-infer plugin build --arch sm80,sm90"))
@click.option(
    "--arch",
    default="native",
    show_default=True,
    metavar="native|all|smNN,...",
    help="GPU architectures to compile for; native: those in this machine, if any.",
)
@click.option(
    "--cuda/--no-cuda", default=None, help="With or without the CUDA kernels.  [default: with, if nvcc is found]"
)
def build(arch: str, cuda: bool | None) -> None:
    """Compile the library from the source tree."""
    from stn_infer import plugin

    echo(plugin.build(arch, cuda=cuda))
