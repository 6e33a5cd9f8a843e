"""Computes constants that only operators without an ONNX form compute, such as the inverse of a buffer, in float64."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from stn_infer.torch_export.origin import is_matrix_function

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node


def fold_constants(program: ExportedProgram) -> torch.nn.Module | None:
    """The program as a module in which matrix functions of constants are constants; None if there are none.

    ``solve(A, b)`` with a constant ``A`` becomes ``inverse(A) @ b``, whatever the size of ``A``.
    """
    import torch

    constants = _constant_nodes(program)
    wanted = {node.name for node in program.graph.nodes if node in constants and is_matrix_function(node)}
    solves = {
        node.name
        for node in program.graph.nodes
        if node.target is torch.ops.aten.linalg_solve.default and node not in constants and node.args[0] in constants
    }
    if not wanted and not solves:
        return None
    module = program.module(check_guards=False)
    graph: Any = module.graph
    fresh = {}
    for lifted, node in zip(_body(program.graph), _body(graph), strict=True):
        fresh[lifted.name] = node

    def store(value: torch.Tensor) -> Any:
        key = f"folded_{len(list(module.buffers()))}"
        module.register_buffer(key, value)
        return graph.get_attr(key)

    values: dict[Any, Any] = {}
    for name in sorted(wanted | solves, key=list(fresh).index):
        node = fresh[name]
        with graph.inserting_before(node):
            if name in wanted:
                found = _evaluate(module, node, values)
                if not isinstance(found, torch.Tensor):
                    for user in tuple(node.users):
                        user.replace_all_uses_with(store(found[user.args[1]]))
                        graph.erase_node(user)
                else:
                    node.replace_all_uses_with(store(found))
            else:
                matrix = _evaluate(module, node.args[0], values)
                node.replace_all_uses_with(_product(graph, store(_in_double(torch.linalg.inv, (matrix,), {})), node))
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _constant_nodes(program: ExportedProgram) -> set[Node]:
    """The nodes that depend on weights and buffers only."""
    import torch

    user = set(program.graph_signature.user_inputs)
    found: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in user:
                found.add(node)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            random = torch.Tag.nondeterministic_seeded in node.target.tags
            if (
                not random
                and not node.target._schema.is_mutable
                and all(each in found for each in node.all_input_nodes)
            ):
                found.add(node)
        elif node.target is operator.getitem and node.args[0] in found:
            found.add(node)
    return found


def _body(graph: Any) -> list[Any]:
    """The calls of a graph, in which a program and its module agree, without the module's checks of its inputs."""
    return [node for node in graph.nodes if node.op == "call_function"]


def _evaluate(module: Any, node: Any, values: dict[Any, Any]) -> Any:
    """The value of a node that depends on weights and buffers only; matrix functions in float64."""
    import torch
    from torch.fx.node import map_arg

    if node in values:
        return values[node]
    if node.op == "get_attr":
        value: Any = module
        for part in node.target.split("."):
            value = getattr(value, part)
        found: Any = value.detach()
    else:
        arguments, options = map_arg((node.args, node.kwargs), lambda each: _evaluate(module, each, values))
        run = _in_double if is_matrix_function(node) else lambda function, given, named: function(*given, **named)
        with torch.no_grad():
            found = run(node.target, arguments, options)
    values[node] = found
    return found


def _in_double(function: Any, arguments: Any, options: Any) -> Any:
    import torch
    from torch.utils import _pytree as pytree

    def single(value: Any) -> Any:
        is_double = isinstance(value, torch.Tensor) and value.dtype == torch.float64
        return value.to(torch.float32) if is_double else value

    def double(value: Any) -> Any:
        is_single = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return value.to(torch.float64) if is_single else value

    leaves = pytree.tree_leaves((arguments, options))
    if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in leaves):
        return function(*arguments, **options)
    arguments, options = pytree.tree_map(double, (arguments, options))
    return pytree.tree_map(single, function(*arguments, **options))


def _product(graph: Any, inverse: Any, node: Any) -> Any:
    """The nodes of ``inverse @ right``, or ``right @ inverse``, that replace a call of ``torch.linalg.solve``."""
    import torch

    from stn_infer.torch_export.linear_algebra import takes_vectors

    matrix, right = (each.meta["val"] for each in node.args[:2])
    call, aten = graph.call_function, torch.ops.aten
    if takes_vectors(matrix, right):
        column = call(aten.unsqueeze.default, (node.args[1], -1))
        return call(aten.squeeze.dim, (call(aten.matmul.default, (inverse, column)), -1))
    given = (inverse, node.args[1]) if node.kwargs.get("left", True) else (node.args[1], inverse)
    return call(aten.matmul.default, given)
