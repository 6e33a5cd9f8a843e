"""Asks the parsers of installed runtimes about a model, each in a process of its own.

A parser constant-folds and unrolls without bounds, and may crash on a file that other runtimes read; the file is then
refused by this target alone.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from stn_infer.budget import Budget
from stn_infer.errors import MissingDependencyError, ModelError, one_line
from stn_infer.proto.traversal import every_node, nested_nodes
from stn_infer.repairs.trial import TrialCrashError, limit_memory, limit_time, report, run_trial
from stn_infer.targets.judgment import Judgment, Reason
from stn_infer.targets.target import Runtime, Target

_WEIGHTS = 4  # copies of the model: its bytes, the parser's, constants, and what is folded
_LONGEST = 1 << 26  # characters of a judgment, in which each reason may name a node of the model
_MOST_REASONS = 200
_UNCONVERTED = re.compile(r"No conversion rule found for operations: (.*)")
# OpenVINO's words around its reason.
_CONVERTED = re.compile(r"<Node\(\w+\): ([^>]*)>")
_CONVERTING = re.compile(r"^\S+ with a message: (?:While validating ONNX node '<Node\(\w+\): [^>]*>': )?")
_REFUSED = re.compile(r"^(?:onnxruntime|OpenVINO) rejects .*?: ")


def ask_parser(target: Target, model: Path | bytes, name: str, budget: Budget) -> Judgment:
    """Ask the installed runtime of a target about a model, in a child process.

    Args:
        target: whose runtime is installed.
        model: an ONNX file, or the bytes of a model without external data.
        name: the model's name in messages.
        budget: of the child; 0 seconds: there are no limits.

    Returns:
        What the parser says. Not judged: it exceeded a limit, or the runtime cannot be used here.
    """
    judge = _title(target)
    job = {"runtime": target.runtime, "path": str(model.resolve()) if isinstance(model, Path) else None}
    content = b"" if isinstance(model, Path) else model
    try:
        told = run_trial(__name__, {**job, "judge": judge}, content, name, budget.or_unlimited())
        return Judgment.from_dict(json.loads(told))
    except TrialCrashError as error:
        return Judgment(judge, (Reason(f"its parser crashes on the file ({error.signal})"),))
    except ModelError as error:
        return Judgment(judge, note=str(error).removeprefix(f"{name}: "))
    except ValueError:  # cut off
        return Judgment(judge, note="its answer is too long")


def _title(target: Target) -> str:
    titles: dict[Runtime, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "openvino": "OpenVINO"}
    return f"{titles.get(target.runtime, target.runtime)} {target.installed}"


def judge_here(runtime: Runtime, path: Path | None, content: bytes, judge: str) -> Judgment:
    """Ask a runtime about a model, in this process.

    Args:
        runtime: its name.
        path: the model's file; None: ``content`` is the model.
        content: the model's bytes if there is no path.
        judge: who says it.
    """
    model = onnx.ModelProto()
    model.ParseFromString(content if path is None else path.read_bytes())
    ask: dict[Runtime, Callable[[], Iterator[Reason]]] = {
        "onnxruntime": lambda: _onnxruntime(path or content, model),
        "openvino": lambda: _openvino(path, content, model),
        "tensorrt": lambda: _tensorrt("tensorrt", path, content, model),
        "tensorrt-rtx": lambda: _tensorrt("tensorrt-rtx", path, content, model),
    }
    try:
        reasons = [reason for reason, _ in zip(ask[runtime](), range(_MOST_REASONS), strict=False)]
    except MissingDependencyError as error:
        return Judgment(judge, note=str(error))
    return Judgment(judge, tuple(reasons))


def _onnxruntime(source: Path | bytes, model: onnx.ModelProto) -> Iterator[Reason]:
    from stn_infer.proto.session import open_session

    try:
        open_session(source, label="the file", threads=1)
    except ModelError as error:
        yield from _located(_REFUSED.sub("", str(error)), model)


def _openvino(path: Path | None, content: bytes, model: onnx.ModelProto) -> Iterator[Reason]:
    from stn_infer.backends.openvino.runtime import core_with, load_openvino, reason
    from stn_infer.proto.load import load_model

    core = core_with(load_openvino(), None)
    if path is not None and path.suffix != ".onnx":  # which OpenVINO would not take for an ONNX file
        content = load_model(path).SerializeToString()
        path = None
    try:
        read = core.read_model(str(path) if path is not None else io.BytesIO(content))
        core.compile_model(read, "CPU", {"INFERENCE_NUM_THREADS": 1})
    except Exception as error:  # its exceptions have no common base class
        text = reason(error)
        missing = _UNCONVERTED.match(text)
        operators = {name.strip() for name in missing[1].split(",")} if missing else set()
        named = [node for node in nested_nodes(model.graph.node) if _openvino_name(node) in operators]
        for node in named:
            yield Reason(f"no conversion rule for {_openvino_name(node)}", _name(node))
        if not named:
            yield from _located(text, model)


def _openvino_name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _tensorrt(name: Runtime, path: Path | None, content: bytes, model: onnx.ModelProto) -> Iterator[Reason]:
    from stn_infer.backends.tensorrt.builder import Parsing
    from stn_infer.backends.tensorrt.runtime import load_runtime

    runtime = load_runtime(name)
    try:
        parsing = Parsing(runtime, None)
    except Exception as error:  # without a driver, full TensorRT cannot make a builder
        raise MissingDependencyError(f"{runtime.title} cannot be used here ({one_line(error)})") from error
    problems = parsing.problems(path.read_bytes() if path is not None else content, path)
    for problem in problems:
        node = problem.node
        if not node and not problem.within and 0 <= problem.index < len(model.graph.node):
            node = _name(model.graph.node[problem.index])
        yield Reason(problem.reason.rstrip("."), node, " / ".join(problem.within))
    misread = "" if problems else parsing.misread_sampler(model)
    if misread:
        yield Reason("its mode is read as NEAREST: the engine builds, and its values are wrong", misread)


def _located(text: str, model: onnx.ModelProto) -> Iterator[Reason]:
    """A reason with the node that its text names, or the first one of an operator that it names with its domain."""
    nodes = list(every_node(model))
    reason = _CONVERTING.sub("", text).rstrip(".")
    for name in _CONVERTED.findall(text):  # a name of its own, or an output's
        named = next((_name(node) for node in nodes if name == node.name or name in node.output), "")
        if named:
            yield Reason(reason, named)
            return
    words = set(re.findall(r"[^\s'\"()<>,]+", text))
    named = max({_name(node) for node in nodes} & {*words, *(word.rstrip(":.") for word in words)}, key=len, default="")
    operators = (_name(node) for node in nodes if node.domain and f"{node.domain}:{node.op_type}" in words)
    yield Reason(reason, named or next(operators, ""))


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _child(runtime: Runtime, path: str | None, judge: str, seconds: float, bytes: int) -> int:
    limit_time(seconds)
    content = b"" if path is not None else sys.stdin.buffer.read()
    try:
        import stn_infer.proto.session  # noqa: F401  # before the limit on memory, as libraries map gigabytes
        from stn_infer.proto.load import read_graph
        from stn_infer.repairs.large_weights import bytes_of_weights

        weights = bytes_of_weights(read_graph(Path(path))) if path is not None else len(content)
        _load(runtime)
        limit_memory(bytes + _WEIGHTS * weights)
        judgment = judge_here(runtime, None if path is None else Path(path), content, judge)
    except MemoryError:
        judgment = Judgment(judge, note=f"it requests more memory than {bytes / 2**30:g} GiB beside its weights")
    answer = json.dumps(judgment.to_dict(), separators=(",", ":"))
    report(answer.replace(" ", r"\u0020"), _LONGEST)  # blanks, only within texts here, would be merged
    return 0


def _load(runtime: Runtime) -> None:
    """Imports a runtime; if it is not installed, the judgment says so."""
    from stn_infer.backends.openvino.runtime import load_openvino
    from stn_infer.backends.tensorrt.runtime import load_runtime
    from stn_infer.proto.session import import_onnxruntime

    try:
        if runtime == "onnxruntime":
            import_onnxruntime()
        elif runtime == "openvino":
            load_openvino()
        else:
            load_runtime(runtime)
    except MissingDependencyError:
        pass


if __name__ == "__main__":
    # Without an interpreter's shutdown: a native library's destructors are not asked.
    os._exit(_child(**json.loads(sys.argv[1])))
