"""The ONNX files that a benchmark runs: the plain export, the portable file, and both in reduced precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stn_infer.errors import StnInferError
from stn_infer.metadata import Precision

if TYPE_CHECKING:
    import onnx

    from stn_infer.data.batches import Calibration
    from stn_infer.sources.load import LoadedModel


@dataclass
class ModelFiles:
    """What could be made.

    Attributes:
        made: ``plain`` and ``portable`` to files.
        problems: of the two, those that there are none of, to the reason.
        cuts: tensors of the two files that grids are computed from.
        build_s: seconds to make each.
    """

    made: dict[str, Path] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()
    build_s: dict[str, float] = field(default_factory=dict)


def make_files(
    loaded: LoadedModel | None,
    given: Path | None,
    folder: Path,
    wanted: frozenset[str],
    precision: Precision,
    rule: LoadedModel,
    calibration: Callable[[], Calibration | None],
    *,
    given_is_converted: bool = False,
) -> ModelFiles:
    """Export, fuse and convert what is wanted; from a file that is given, make the other.

    The portable file of a PyTorch model is, byte for byte, what ``export`` writes.

    Args:
        loaded: the model in PyTorch, where there is one.
        given: an ONNX file that the user named.
        folder: where to write.
        wanted: ``plain`` and ``portable``, or fewer.
        precision: what the files are converted to.
        rule: ``loaded``, or what stands for it: says what inputs look like.
        calibration: INT8 calibration data; asked for only where something is converted.
        given_is_converted: whether ``given`` is in that precision already.
    """
    from stn_infer.fusion.fuse import fuse
    from stn_infer.fusion.op import is_op
    from stn_infer.fusion.samplers import spatial_nodes
    from stn_infer.precision.lower import convert
    from stn_infer.proto.load import load_model
    from stn_infer.torch_export.portable import build_plain, describe, file_metadata

    files = ModelFiles()
    cuts: list[str] = []
    plain: onnx.ModelProto | None = None
    if given is not None:
        file = load_model(given)
        if any(map(is_op, file.graph.node)):
            files.made["portable"] = given.resolve()
        else:
            plain, files.made["plain"] = file, given.resolve()
    if loaded is None and plain is None:
        files.problems["plain"] = "the file holds nodes of domain stn; what it was before them is not known"
    try:
        if plain is None and loaded is not None and ("plain" in wanted or "portable" not in files.made):
            began = time.perf_counter()
            plain = build_plain(loaded, precision).model
            files.made["plain"] = _write(plain, folder / "plain.onnx")
            files.build_s["plain"] = round(time.perf_counter() - began, 3)
        if plain is not None and ("portable" in wanted or "portable" in files.made):
            began = time.perf_counter()
            # of a portable file that was given, too: for what is a grid in the plain one
            portable, findings = fuse(plain)
            cuts += [name for finding in findings for name in finding.cut]
            if "portable" not in files.made:
                if given is None and loaded is not None:
                    describe(portable, file_metadata(loaded))
                files.made["portable"] = _write(portable, folder / "portable.onnx")
                files.build_s["portable"] = round(time.perf_counter() - began, 3)
    except StnInferError as error:
        for name in ("plain", "portable"):
            if name not in files.made:
                files.problems[name] = str(error)
    if "portable" in files.made:
        cuts += [node.theta for node in spatial_nodes(load_model(files.made["portable"]))]
    files.cuts = tuple(dict.fromkeys(cuts))
    if precision != "fp32":
        for name in list(files.made):
            if given_is_converted and given is not None and files.made[name] == given.resolve():
                continue
            began = time.perf_counter()
            try:
                converted = convert(rule, load_model(files.made[name]), precision, calibration()).model
                if given is None and loaded is not None and name == "portable":
                    describe(converted, file_metadata(loaded, precision))
                files.made[name] = _write(converted, folder / f"{name}-{precision}.onnx")
                files.build_s[f"{name} in {precision}"] = round(time.perf_counter() - began, 3)
            except StnInferError as error:
                del files.made[name]
                files.problems[name] = str(error)
    return files


def _write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
