"""Warps by a dense field that a network computes per voxel: there is no theta, so they become ``stn::Sampler``."""

from __future__ import annotations

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.op import OP_TYPES
from stn_infer.torch_export.plain import export_plain
from tests.support.onnx_files import check_only_samplers_changed

SIZE = (4, 6, 5)


class Registration(nn.Module):
    """As in VoxelMorph: a convnet on both volumes gives a displacement in voxels, added to the identity grid."""

    def __init__(self, size: tuple[int, int, int] = SIZE) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(2, 6, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv3d(6, 6, 3, 1, 1))
        self.decoder = nn.Sequential(nn.Conv3d(8, 6, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv3d(6, 3, 3, 1, 1))
        voxels = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
        self.register_buffer("identity", torch.stack(voxels)[None])
        self.size = size

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([moving, fixed], 1)
        deep = F.interpolate(self.encoder(both), self.size, mode="nearest")
        flow = self.decoder(torch.cat([deep, both], 1))
        places = self.identity + flow
        scaled = [2 * (places[:, axis] / (n - 1) - 0.5) for axis, n in enumerate(self.size)]
        grid = torch.stack(scaled[::-1], -1)
        return F.grid_sample(moving, grid, align_corners=True), flow


class Portrait(nn.Module):
    """As in LivePortrait: the volume is warped by one motion per key point; a softmax mask blends the motions."""

    def __init__(self, channels: int = 3, points: int = 4, size: tuple[int, int, int] = SIZE) -> None:
        super().__init__()
        self.hourglass = nn.Sequential(nn.Conv3d((points + 1) * channels, 8, 3, 1, 1), nn.ReLU())
        self.mask = nn.Conv3d(8, points + 1, 3, 1, 1)
        axes = (2 * torch.arange(n, dtype=torch.float32) / (n - 1) - 1 for n in size)
        self.register_buffer("identity", torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1))

    def forward(self, volume: Tensor, driving: Tensor, source: Tensor) -> Tensor:
        count, channels, *size = volume.shape
        shifts = torch.cat([torch.zeros_like(source[:, :1]), source - driving], 1)[:, :, None, None, None]
        motions = self.identity + shifts  # [N, points + 1, D, H, W, 3]
        several = volume[:, None].expand(-1, motions.shape[1], -1, -1, -1, -1)
        warped = F.grid_sample(several.flatten(0, 1), motions.flatten(0, 1), align_corners=False)
        features = warped.reshape(count, motions.shape[1] * channels, *size)
        mask = self.mask(self.hourglass(features)).softmax(1)
        deformation = (mask[..., None] * motions).sum(1)
        return F.grid_sample(volume, deformation, align_corners=False)


class Flow(nn.Module):
    """The same in 2-D: optical flow from a convnet."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, 2, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 7, 9], align_corners=False)
        return F.grid_sample(image, identity + 0.1 * self.net(image).permute(0, 2, 3, 1), align_corners=False)


def exported(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[onnx.ModelProto, onnx.ModelProto, list[Finding]]:
    plain = export_plain(module, shapes)
    model, findings = fuse(plain)
    onnx.checker.check_model(model)
    return plain, model, list(findings)


def check_runs(module: nn.Module, model: onnx.ModelProto, batch: int, *shapes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(batch)
    inputs = [torch.randn((batch, *shape), generator=generator) for shape in shapes]
    names = [value.name for value in model.graph.input]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    answers = list(OrtBackend(model.SerializeToString(), threads=1).run(feeds).values())
    with torch.no_grad():
        expected = module(*inputs)
    for answer, wanted in zip(answers, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(answer, wanted.numpy(), atol=1e-5)


def samplers(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type in ("GridSample", *OP_TYPES)]


def test_dense_registration_of_volumes_is_not_fused_and_runs() -> None:
    torch.manual_seed(0)
    module, shapes = Registration().eval(), ((1, *SIZE), (1, *SIZE))
    plain, model, (finding,) = exported(module, *shapes)
    check_named(finding)
    assert samplers(model) == ["Sampler"]
    check_only_samplers_changed(plain, model)
    for batch in (1, 3):
        check_runs(module, model, batch, *shapes)


def test_optical_flow_is_not_fused_and_runs() -> None:
    torch.manual_seed(1)
    module = Flow().eval()
    _, model, (finding,) = exported(module, (1, 7, 9))
    check_named(finding)
    check_runs(module, model, 2, (1, 7, 9))


def check_named(finding: Finding) -> None:
    """The finding names the grid, and the convolution that ends the proof."""
    assert not finding.fused
    assert "(Conv)" in finding.message and finding.grid in finding.message


def test_motions_blended_by_a_mask_are_not_fused_and_run() -> None:
    torch.manual_seed(0)
    module, shapes = Portrait().eval(), ((3, *SIZE), (4, 3), (4, 3))
    _, model, findings = exported(module, *shapes)
    sparse, blended = findings
    assert not blended.fused
    assert "(Mul)" in blended.message or "(Softmax)" in blended.message, blended.message
    # One motion per key point is a translation, hence linear, so it may be fused; the blend may not.
    assert samplers(model)[-1] == "Sampler"
    assert sparse.fused == (samplers(model)[0] == "SpatialTransformer")
    for batch in (1, 2):
        check_runs(module, model, batch, *shapes)
