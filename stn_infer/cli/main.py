"""The command ``stn-infer``: a thin shell over the API that imports a command only when it is called.

A command is a module ``stn_infer.cli.<name>``, or one in a folder of :data:`FOLDERS`, with a click command named
``command``. It raises
:class:`~stn_infer.errors.StnInferError` for problems that a user can fix. This module turns every exception into a line
on stderr and an exit code. A command that succeeds with another exit code (4: some inputs failed) calls
``ctx.exit(code)``.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Never

import click

from stn_infer.cli.output import echo, echo_text
from stn_infer.cli.terminal.verbosity import add_common_options, debug_option
from stn_infer.errors import AssumptionWarning, FallbackWarning, StnInferError, one_line
from stn_infer.extras import of_import
from stn_infer.files import remove_temporary
from stn_infer.interrupts import Interrupts, leave

# In the order of use. The help lines are here so that ``--help`` imports no command.
COMMANDS = {
    "models": "List the shipped models and all networks.",
    "export": "Export a PyTorch model to a portable ONNX file.",
    "optimize": "Fuse the spatial transformers of any ONNX file.",
    "metadata": "Print or store what a file says about its inputs and classes.",
    "lint": "Report what in an ONNX file is wrong, unsupported or slow.",
    "build": "Build a TensorRT engine.",
    "refit": "Put other weights into a TensorRT engine.",
    "inspect": "Show what is in a TensorRT engine.",
    "cache": "List or clear the cache of TensorRT engines.",
    "run": "Predict images, folders, arrays or lists of files.",
    "eval": "Score predictions of labeled samples.",
    "verify": "Compare every backend with a float64 reference.",
    "bench": "Measure latency and throughput in every runtime.",
    "best": "Write the fastest file of a model on this machine.",
    "plugin": "Inspect or build the plugin library.",
    "triton": "Write a model repository for Triton Inference Server.",
    "show": "Draw inputs, the regions that are sampled, and predictions.",
    "doctor": "Report what this machine can run, and what is missing.",
}

#: The folders of the commands that are not directly in ``stn_infer.cli``.
FOLDERS = dict.fromkeys(("build", "refit", "inspect", "cache"), "engines")


#: What a group without a command raises; click 8.1 prints the help itself.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and reports every error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and add the options of all commands to it; None if the name is unknown."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = ".".join(("stn_infer.cli", *filter(None, (FOLDERS.get(cmd_name), cmd_name))))
        command: click.Command = importlib.import_module(module).command
        return add_common_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; the error for an unknown name suggests the nearest."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], names, n=1)
            ctx.fail(f"no such command: {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interruption is left to :meth:`main`, which prints one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.exceptions.Abort from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, without importing them."""
        commands = [(name, COMMANDS[name]) for name in self.list_commands(ctx)]
        if commands:
            with formatter.section("Commands"):
                formatter.write_dl(commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; with ``standalone_mode=False``, return and do not catch errors."""
        arguments = list(sys.argv[1:] if args is None else args)
        name = prog_name or "stn-infer"
        if not standalone_mode:
            return super().main(arguments, name, complete_var, False, **extra)
        with Interrupts(owns_process=args is None) as interrupts:
            try:
                with interrupts.raising(), _own_warnings():
                    code = super().main(arguments, name, complete_var, False, **extra)
                    sys.stdout.flush()  # reports a closed pipe here, not when the interpreter exits
                if interrupts.seen:  # somebody took it for a failure of their own
                    raise click.exceptions.Abort
            except (Exception, KeyboardInterrupt) as raised:
                error = Interrupted(raised) if isinstance(raised, KeyboardInterrupt) else raised
                if interrupts.seen and not isinstance(error, click.exceptions.Abort):
                    error = Interrupted(error)
                try:
                    if not interrupts.seen or interrupts.say_it():
                        _fail(error, name, "--debug" in arguments, interrupts.exit_code)
                finally:
                    if interrupts.seen and args is None:  # the process is ours alone
                        remove_temporary()  # also what a second signal kept
                        leave(interrupts.exit_code)
        sys.exit(code if type(code) is int else 0)


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Prints the warnings of :mod:`stn_infer.errors` as one line each; other warnings are Python's matter."""
    with warnings.catch_warnings():
        for own in (AssumptionWarning, FallbackWarning):
            warnings.simplefilter("always", own)
        as_python_does = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, (AssumptionWarning, FallbackWarning)):
                echo(f"warning: {message}", err=True)
            else:
                as_python_does(message, category, *rest, **named)

        warnings.showwarning = show
        yield


class Interrupted(click.exceptions.Abort):
    """Ctrl-C that a library turned into another exception, for example in an import that was not complete."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.__cause__ = error


def _fail(error: Exception, prog_name: str, debug: bool, interrupted: int) -> Never:
    """Print one line for ``error``, after its traceback if ``debug``, and exit with its code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # the reader of the pipe has closed it (`| head`): exit without a message
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.exit(1)
    if isinstance(error, _NO_ARGUMENTS):  # its message is the help
        echo_text(error.format_message(), err=True)
        sys.exit(error.exit_code)
    if debug:
        echo_text("".join(traceback.format_exception(error)).rstrip(), err=True)
    message, code = _explain(error, prog_name, interrupted)
    if isinstance(error, click.exceptions.Abort) and sys.stderr.isatty():
        echo(err=True)  # after the terminal's ^C
    echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _explain(error: Exception, prog_name: str, interrupted: int) -> tuple[str, int]:
    """The message and the exit code for an exception."""
    if isinstance(error, StnInferError):
        return str(error), error.exit_code
    if isinstance(error, click.exceptions.Abort):
        return "interrupted", interrupted
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else prog_name
        return f"{error.format_message()} (see '{path} --help')", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (missing := of_import(error)) is not None:
        return str(missing), missing.exit_code
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("stn_infer"):
        return f"the Python package {error.name!r} is required but not installed; install it with pip", 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = error.filename or "the result"
        return f"no space left to write {name} ({error.strerror}); free some space or write elsewhere", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", 1
    if isinstance(error, MemoryError):
        return f"not enough memory ({one_line(error)}); use smaller inputs or a smaller model, or free some memory", 1
    return f"internal error: {type(error).__name__}: {error}; run with --debug for the traceback, and report it", 1


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            echo(f"stn-infer {version('stn-infer')}")
        except PackageNotFoundError:
            echo("stn-infer (not installed, run from the source tree)")
        ctx.exit()


@click.group(
    name="stn-infer",
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 failure, 2 usage, 3 verification failed, 4 some inputs failed, 130 interrupted "
    "(129 by SIGHUP, 143 by SIGTERM). "
    "Environment: STN_TRIAL_SECONDS (60) and STN_TRIAL_GIB (4) limit the analysis of an ONNX file that was not seen "
    "before, as --trial-seconds and --trial-memory do; STN_TRIAL_SECONDS=0 skips it, for files that you trust.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Spatial Transformer Networks: portable ONNX export, batched prediction, verification and benchmarks."""


main.params.append(debug_option())


if __name__ == "__main__":
    main()
