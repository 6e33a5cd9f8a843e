"""Open the archive of an exported program (``.pt2``) without running any code in it.

``torch.export.load`` unpickles sample inputs, weights and constants, evaluates the text of shape expressions, resolves
operators by any dotted name below ``torch``, imports modules that a container's description names, and loads compiled
libraries. So the archive is checked here first. Pickles must contain only tensors (``torch.load(weights_only=True)``);
names and expressions must match the lists below; other members of the archive are ignored. PyTorch gets a copy that
contains only checked members, so that two zip readers cannot see two different archives.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stn_infer.errors import SourceError, one_line

_MOST_JSON = 256 << 20
_MOST_RATIO = 1100  # deflate does not compress better than 1032:1; a larger size is false
_COPY = 1 << 20

_PLAIN = re.compile(r"(\.data/)?(byteorder|version|archive_format|archive_version|\.format_version|serialization_id)")
_MODEL = re.compile(r"models/([\w.-]+)\.json")
_TENSORS = re.compile(r"data/(weights|constants)/((weight|tensor)_\d+|[\w.-]+_config\.json)")
_SAMPLES = re.compile(r"data/sample_inputs/[\w.-]+\.pt")
_LEGACY = re.compile(r"data/(weights|constants)/[\w.-]+\.pt")
_OBJECTS = re.compile(r"data/constants/(custom|opaque)_obj_.*")
_COMPILED = re.compile(r"data/aotinductor/.*")

# Operators that only compute; others in PyTorch's namespaces open files, load libraries or call back into Python.
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision|stn)\.\w+(\.\w+)?")
_CONTROL = re.compile(
    r"torch\.ops\.higher_order\.(cond|map_impl|scan|while_loop|associative_scan|wrap_with_set_grad_enabled|"
    r"wrap_with_autocast|flex_attention)"
)
_OPENS_FILES = re.compile(r"torch\.ops\.aten\.(from_file|_from_file)\b.*")
_SYMBOLIC = re.compile(
    r"torch\.(sym_(int|float|max|min|not|ite|sum|sqrt|fresh_size)|_sym_sqrt|_sym_\w+)|math\.\w+|"
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|invert|and_|or_|xor|not_|eq|ne|lt|le|gt|ge|"
    r"lshift|rshift|index)"
)
_FUNCTIONS = frozenset(
    """Add Mul Max Min Abs Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where IntTrueDiv FloatTrueDiv TrueDiv
    ToFloat TruncToInt TruncToFloat CeilToInt FloorToInt RoundToInt RoundDecimal FloatPow PowByNatural Pow LShift RShift
    Identity IsNonOverlappingAndDenseIndicator BitwiseFn_bitwise_and BitwiseFn_bitwise_or floor ceiling sqrt Eq Ne Lt Le
    Gt Ge And Or Not Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Integer Float Rational
    Symbol OpaqueUnaryFn_sqrt OpaqueUnaryFn_log2 OpaqueUnaryFn_exp""".split()  # noqa: SIM905 - a list of 60 lines
)
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift"))
_ASSUMPTIONS = frozenset(
    ("positive", "negative", "nonnegative", "integer", "real", "finite", "zero", "precision", "evaluate")
)
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.keyword),
)
_MOST_EXPONENT = 16
_CONTAINERS = frozenset(
    [None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size"]
)


@contextmanager
def opened_program(path: Path) -> Iterator[IO[bytes]]:
    """Open a copy of the archive at ``path`` that is safe for ``torch.export.load``, in an unnamed temporary file.

    Raises:
        SourceError: the file is not such an archive, is damaged, or contains something that could run code, which the
            message names.
    """
    with tempfile.TemporaryFile() as copy:
        try:
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as clean:
                for member, name in _members(path, archive):
                    _copy(path, archive, member, name, clean)
        except SourceError:
            raise
        except (OSError, ValueError, RecursionError, MemoryError, NotImplementedError, RuntimeError) as error:
            raise _not_one(path, error) from None
        except (zipfile.BadZipFile, EOFError, zipfile.LargeZipFile, Exception) as error:
            raise _not_one(path, error) from None
        copy.seek(0)
        yield copy


def _not_one(path: Path, error: BaseException) -> SourceError:
    text = one_line(error) or type(error).__name__
    return SourceError(
        f"{path}: expected a program saved by torch.export.save; the file is damaged or of another kind ({text})"
    )


def _refused(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path}: {what}, which could run code; export the model from Python instead (package.module:factory)"
    )


def _members(path: Path, archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, str]]:
    """The members to copy, with their full names."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    roots = {info.filename.partition("/")[0] for info in infos}
    names = [info.filename.partition("/")[2].lower() for info in infos]
    if len(roots) != 1 or len(set(names)) != len(names):
        raise SourceError(f"{path}: expected a program saved by torch.export.save; it is another kind of zip archive")
    kept = []
    size = 0
    for info in infos:
        name = info.filename.partition("/")[2]
        if _OBJECTS.fullmatch(name):
            raise _refused(path, "its constants contain Python or TorchScript objects")
        if _COMPILED.fullmatch(name):
            raise _refused(path, "it contains libraries compiled by AOTInductor")
        if info.file_size > max(1, info.compress_size) * _MOST_RATIO:
            raise SourceError(
                f"{path}: member {name!r} claims to unpack {info.compress_size} bytes to {info.file_size}"
            )
        if any(kind.fullmatch(name) for kind in (_PLAIN, _MODEL, _TENSORS, _SAMPLES, _LEGACY)):
            kept.append((info, info.filename))
            size += info.file_size
    if size > path.stat().st_size + (64 << 20) + sum(info.compress_size for info, _ in kept) * 4:
        raise SourceError(f"{path}: it unpacks to {size >> 20} MiB, far more than its weights; save it again")
    if not any(_MODEL.fullmatch(name.partition("/")[2]) for _, name in kept):
        raise SourceError(f"{path}: expected a program saved by torch.export.save; the archive contains no program")
    return kept


def _copy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, full: str, clean: zipfile.ZipFile) -> None:
    name = full.partition("/")[2]
    is_pickle = bool(_SAMPLES.fullmatch(name) or _LEGACY.fullmatch(name))
    if name.endswith(".json") or is_pickle:
        if member.file_size > _MOST_JSON and not is_pickle:
            raise SourceError(f"{path}: {name} has {member.file_size >> 20} MiB")
        content = archive.read(member)
        if is_pickle:
            _check_pickle(path, name, content)
        else:
            content = _checked_json(path, name, content, archive, full.partition("/")[0])
        clean.writestr(zipfile.ZipInfo(full), content)
        return
    with archive.open(member) as source, clean.open(zipfile.ZipInfo(full), "w", force_zip64=True) as target:
        while block := source.read(_COPY):
            target.write(block)


def _check_pickle(path: Path, name: str, content: bytes) -> Any:
    """Load the tensors in a pickle; raises SourceError if it contains anything else."""
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if content else None
    except Exception as error:  # a damaged or hostile pickle may raise any exception in torch's reader
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _refused(
            path, f"{name} contains Python objects other than tensors{f' ({named[1]})' if named else ''}"
        ) from None


def _checked_json(path: Path, name: str, content: bytes, archive: zipfile.ZipFile, root: str) -> bytes:
    value = json.loads(content)
    if name.endswith("_config.json"):
        for tensor, payload in value["config"].items():
            if payload.get("use_pickle"):
                file = f"{name.rpartition('/')[0]}/{payload['path_name']}"
                if not _TENSORS.fullmatch(file):
                    raise SourceError(f"{path}: the data of {tensor!r} lies outside the archive's own folders")
                _check_pickle(path, file, archive.read(f"{root}/{file}"))
    else:
        _check_program(path, value)
    return json.dumps(value).encode()


def _check_program(path: Path, program: Any) -> None:
    """Check the description of a program: operators, shape expressions and containers."""
    rest: list[tuple[str, Any]] = [("", program)]
    while rest:
        key, value = rest.pop()
        if isinstance(value, dict):
            rest += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            rest += [(key, item) for item in value]
        elif isinstance(value, str):
            if key == "target" and not _is_operator(value):
                raise _refused(path, f"it calls {value[:80]!r}")
            if key == "expr_str" and not _is_expression(value):
                raise _refused(path, f"it has the shape expression {value[:80]!r}")
            if key in ("in_spec", "out_spec") and value and not _is_container(value):
                raise _refused(path, f"its inputs or outputs are described as {value[:80]!r}")


def _is_operator(target: str) -> bool:
    if _OPENS_FILES.fullmatch(target):
        return False
    return any(kind.fullmatch(target) for kind in (_OPERATOR, _CONTROL, _SYMBOLIC))


def _is_expression(text: str) -> bool:
    """Whether a text is arithmetic on symbols, with functions of PyTorch's shape expressions."""
    if len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return all(_is_plain(node, node in functions) for node in ast.walk(tree))


def _is_plain(node: ast.AST, is_function: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _FUNCTIONS if is_function else bool(re.fullmatch(r"[a-z]\w*|oo|I|true|false", name))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return name not in _POWERS or (len(arguments) == 2 and _is_small(arguments[1]))
        case ast.keyword(arg=name, value=ast.Constant(value=bool() | int())):
            return name in _ASSUMPTIONS
        case ast.Constant(value=str() as text):
            return bool(re.fullmatch(r"[\w.+-]{1,60}", text))
        case ast.Constant(value=value):
            return isinstance(value, int | float)
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=right):
            return _is_small(right)
        case ast.Call() | ast.keyword():
            return False
        case _:
            return isinstance(node, _NODES)


def _is_small(node: ast.AST) -> bool:
    """Whether an exponent is a small integer; a large one could make a number of any length."""
    match node:
        case ast.Constant(value=int() as value):
            return value <= _MOST_EXPONENT
        case ast.UnaryOp(operand=operand):
            return _is_small(operand)
        case ast.Call(func=ast.Name(id="Integer"), args=[argument]):
            return _is_small(argument)
        case _:
            return False


def _is_container(text: str) -> bool:
    """Whether a description of nested containers contains only Python's own, with plain keys."""
    try:
        described = json.loads(text)
        _, rest = described[0], [described[1]]
        while rest:
            spec = rest.pop()
            if spec["type"] not in _CONTAINERS:
                return False
            context = spec["context"]
            if isinstance(context, str):
                context = json.loads(context)
            keys = context if isinstance(context, list) else [context]
            if not all(key is None or isinstance(key, str | int) for key in keys):
                return False
            rest += spec["children_spec"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False
    return True
