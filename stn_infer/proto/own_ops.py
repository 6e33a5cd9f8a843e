"""The versions of the ops of domain ``stn`` and their attributes: what a file may contain that this package reads.

A node's version is its ``plugin_version``, without one 1. Whatever changes an op's result is a new version, so that an
older package or plugin library rejects the node instead of running it as one that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite

import onnx
from onnx import AttributeProto

from stn_infer.errors import ModelError

DOMAIN = "stn"

_SAMPLER: Mapping[str, int] = {
    "mode": AttributeProto.STRING,
    "padding_mode": AttributeProto.STRING,
    "align_corners": AttributeProto.INT,
    "plugin_namespace": AttributeProto.STRING,
    "plugin_version": AttributeProto.STRING,
}
_THETA = {**_SAMPLER, "grid_shape": AttributeProto.INTS}
_QUOTIENT: Mapping[str, int] = {"w_min": AttributeProto.FLOAT, "offset": AttributeProto.FLOATS}
_LATTICE: Mapping[str, int] = {"theta_shape": AttributeProto.INTS, "lattice_shape": AttributeProto.INTS}

#: By op: the attributes of each version, from 1 on.
ATTRIBUTES: Mapping[str, tuple[Mapping[str, int], ...]] = {
    "SpatialTransformer": ({**_THETA, "kind": AttributeProto.STRING},),
    "ProjectiveTransformer": (_THETA, {**_THETA, **_QUOTIENT}),
    "TensorProductTransformer": ({**_THETA, **_LATTICE},),
    "LatticeTransformer": (_THETA,),
    "Sampler": (_SAMPLER,),
}


class UnknownVersionError(ModelError):
    """A file is not damaged, but newer than this package."""


def check_own_op(node: onnx.NodeProto, label: str) -> None:
    """Checks the version and the attributes of a node, if it is one of this package's ops.

    Args:
        node: any node.
        label: its name in messages.

    Raises:
        UnknownVersionError: this package does not know its version.
        ModelError: an attribute is unknown, or of another type, or one of its version's is missing, or a value has
            no meaning.
    """
    versions = ATTRIBUTES.get(node.op_type)
    if node.domain != DOMAIN or versions is None:
        return
    found = {attribute.name: attribute for attribute in node.attribute}
    text = "1"
    if "plugin_version" in found and not found["plugin_version"].ref_attr_name:
        text = found["plugin_version"].s.decode(errors="replace")
    version = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    name = f"node {label}"
    if version < 1:
        raise ModelError(f"{name} has the plugin_version {text[:20]!r}, expected a number from 1 on")
    if version > len(versions):
        raise UnknownVersionError(
            f"{name} is of version {version}, and this stn-infer knows this op up to version {len(versions)}; "
            "update stn-infer"
        )
    known = versions[version - 1]
    for attribute in node.attribute:
        kind = known.get(attribute.name)
        if kind is None:
            raise ModelError(f"{name} has the attribute {attribute.name[:40]!r}, which version {version} does not have")
        if kind != attribute.type:
            expected = AttributeProto.AttributeType.Name(kind)
            raise ModelError(f"{name} has an attribute {attribute.name!r} that is not of type {expected}")
    if version > 1:
        for missing in (known.keys() - versions[0].keys()) - found.keys():
            raise ModelError(f"{name} has no attribute {missing!r}, which every node of version {version} has")
    shape = found.get("grid_shape")
    if shape is not None and not shape.ref_attr_name:
        rank = len(shape.ints) - 2
        if rank not in (2, 3) or shape.ints[-1] != rank:
            values = ", ".join(map(str, shape.ints[:6]))
            raise ModelError(f"{name} has the grid_shape [{values}], expected [0, H, W, 2] or [0, D, H, W, 3]")
        if "offset" in known:
            _check_division(found["w_min"], found["offset"], rank, name)


def _check_division(least: AttributeProto, offset: AttributeProto, rank: int, name: str) -> None:
    """Checks the values of a quotient's attributes, where they are no references to a function's attributes."""
    if not least.ref_attr_name and not least.f < inf:
        raise ModelError(f"{name} has the w_min {least.f}, expected a number below infinity")
    if not offset.ref_attr_name and (len(offset.floats) != rank or not all(map(isfinite, offset.floats))):
        values = ", ".join(f"{value:g}" for value in offset.floats[:4])
        raise ModelError(f"{name} has the offset [{values}], expected {rank} finite numbers, one per axis of its grid")
