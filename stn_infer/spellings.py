"""How other runtimes spell a sampler in an ONNX file: a table of their operators, as their kernels define them.

Sources, read in November 2026: the kernels of mmcv and mmdeploy (onnxruntime, TensorRT), of ``GridSampler`` (the sample
of plugins for TensorRT's ONNX parser), of BEVFormer_tensorrt's ``GridSampler2DTRT`` and of grid-sample3d-trt-plugin;
PyTorch's symbolic functions. Does not import onnx.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stn_infer.samplers import MODES, PADDING_MODES, Mode, SamplerSpec

#: Names that a file may give the three settings, the first one is the usual one.
_KEYS = (
    ("interpolation_mode", "interpolationmode"),
    ("padding_mode", "paddingmode"),
    ("align_corners", "aligncorners"),
)
#: Names of operators that sample by a grid, or compute one, in some way.
_LOOKS_LIKE_ONE = re.compile(
    r"grid_?sampl|affine_?grid|spatial_?transform|deform(able)?_?(attn|attention)|_?warp(er|ing)?(_|$)", re.IGNORECASE
)


@dataclass(frozen=True)
class Spelling:
    """One operator.

    Attributes:
        domains: the domains that it is written in; empty: any.
        modes: the modes that its kernels have.
        optional: whether a setting that is not written has the value 0.
        unit: the coordinate of the image's edge.
        axes_first: whether the grid is [N, D, *out] instead of [N, *out, D].
        deviations: by mode, what some of its kernels compute instead of what the mode says.
    """

    domains: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = MODES
    optional: bool = False
    unit: float = 1.0
    axes_first: bool = False
    deviations: Mapping[Mode, str] | None = None


_OPENMMLAB = Spelling(
    deviations={"bicubic": "the TensorRT plugins of mmcv and mmdeploy compute bilinear instead of bicubic"}
)
_BEVFORMER = Spelling(unit=10.0, axes_first=True, optional=True)
#: By the operator's name. Its settings are numbers in PyTorch's order: attributes, or PyTorch's inputs 2 to 4.
SPELLINGS: dict[str, Spelling] = {
    "grid_sampler": _OPENMMLAB,
    "grid_sampler_2d": Spelling(),
    "grid_sampler_3d": Spelling(modes=("bilinear", "nearest")),
    "GridSampler": Spelling(modes=("bilinear", "nearest"), optional=True),
    **dict.fromkeys(
        (
            *("GridSampler2DTRT", "GridSampler2DTRT2", "GridSampler3DTRT", "GridSampler3DTRT2"),
            *("GridSamplerTRT", "GridSamplerTRT2"),
        ),
        _BEVFORMER,
    ),
    "GridSample3D": Spelling(
        modes=("bilinear", "nearest"),
        optional=True,
        deviations={"nearest": "grid-sample3d-trt-plugin writes only the first channel, and rounds half up"},
    ),
}


@dataclass(frozen=True)
class Custom:
    """A sampler of another runtime, as far as it is known.

    Attributes:
        spec: its settings; None if they are not known.
        spelling: the operator.
        problem: why the settings are not known, as a clause; "" if they are.
    """

    spec: SamplerSpec | None
    spelling: Spelling
    problem: str = ""

    @property
    def deviation(self) -> str:
        """What some of its kernels compute instead, as a clause; "" if none is known to."""
        known = (self.spelling.deviations or {}).items()
        return next((text for mode, text in known if self.spec is not None and self.spec.mode == mode), "")


def read_custom(
    domain: str, op_type: str, attributes: Mapping[str, Any], numbers: Sequence[int | None]
) -> Custom | None:
    """Reads a node of another runtime; None if it is not a sampler of the table.

    Args:
        domain: the node's.
        op_type: the node's; ``ATen`` has the operator's name in an attribute.
        attributes: its attributes.
        numbers: the inputs from the third on, None for those that are not constants.
    """
    name = str(attributes.get("operator", "")) if op_type == "ATen" else op_type
    spelling = SPELLINGS.get(name)
    if spelling is None or (spelling.domains and domain not in spelling.domains):
        return None
    if len(numbers) >= 3:
        if any(number is None for number in numbers[:3]):
            return Custom(None, spelling, "its settings are not constants")
        return _numbered(spelling, [number or 0 for number in numbers[:3]])
    found = [next((attributes[key] for key in keys if key in attributes), None) for keys in _KEYS]
    missing = [keys[0] for keys, value in zip(_KEYS, found, strict=True) if value is None]
    if missing and (not spelling.optional or op_type == "ATen"):
        return Custom(None, spelling, f"it lacks {' and '.join(missing)}")
    if any(isinstance(value, str) for value in found):
        return Custom(None, spelling, "its settings are not numbers")
    return _numbered(spelling, [int(value or 0) for value in found])


def _numbered(spelling: Spelling, numbers: Sequence[int]) -> Custom:
    mode, padding, align = numbers
    if not 0 <= mode < len(MODES) or not 0 <= padding < len(PADDING_MODES):
        return Custom(None, spelling, f"its interpolation mode is {mode} and its padding mode {padding}")
    if MODES[mode] not in spelling.modes:
        return Custom(None, spelling, f"its kernels have no {MODES[mode]} mode")
    return Custom(SamplerSpec.numbered(mode, padding, bool(align)), spelling)


def looks_like_a_sampler(op_type: str, attributes: Mapping[str, Any]) -> bool:
    """Whether the name of an operator of another runtime says that it samples by a grid or computes one."""
    name = str(attributes.get("operator", "")) if op_type == "ATen" else op_type
    return _LOOKS_LIKE_ONE.search(name) is not None
