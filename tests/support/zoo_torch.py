"""PyTorch modules of the zoo, in addition to those in tests/support/stn_styles.py, and two ways to export them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.quiet import quiet
from tests.support import stn_styles as styles


def dynamo(style: Callable[[], nn.Module], opset: int, *shapes: tuple[int, ...]) -> Callable[[], onnx.ModelProto]:
    """Exported by torch.export, with a dynamic batch."""

    def build() -> onnx.ModelProto:
        module = style().eval()
        inputs = tuple(torch.randn(2, *shape) for shape in shapes or (styles.SHAPE,))
        batch = torch.export.Dim("batch")
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        assert program is not None
        return program.model_proto

    return build


def script(
    style: Callable[[], nn.Module], opset: int, *shapes: tuple[int, ...], batch: int | None = None
) -> Callable[[], onnx.ModelProto]:
    """Exported by tracing, formerly the default; ``batch`` fixes the batch size, else it is dynamic."""

    def build() -> onnx.ModelProto:
        module = style().eval()
        inputs = tuple(torch.randn(batch or 2, *shape) for shape in shapes or (styles.SHAPE,))
        names = [f"input_{index}" for index in range(len(inputs))]
        file = io.BytesIO()
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                inputs,
                file,
                dynamo=False,
                opset_version=opset,
                input_names=names,
                dynamic_axes=None if batch else {name: {0: "batch"} for name in names},
            )
        return onnx.load_from_string(file.getvalue())

    return build


class TensorFlowMesh(nn.Module):
    """Mesh code as in the first TensorFlow implementation: outer products of ones, tiled, a matmul, two slices."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(6, styles.IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        height, width = styles.SIZE
        xs = torch.ones(height, 1) @ torch.linspace(-1, 1, width)[None]
        ys = torch.linspace(-1, 1, height)[:, None] @ torch.ones(1, width)
        points = torch.cat([xs.reshape(1, -1), ys.reshape(1, -1), torch.ones(1, height * width)])
        points = points.flatten().repeat(x.shape[0]).reshape(x.shape[0], 3, -1)
        warped = torch.matmul(self.loc(x).reshape(-1, 2, 3), points)
        x_s, y_s = warped[:, 0:1].reshape(-1, height, width), warped[:, 1:2].reshape(-1, height, width)
        return F.grid_sample(x, torch.stack([x_s, y_s], dim=3), align_corners=True)


class Composed(nn.Module):
    """An unrolled inverse-compositional loop: each step composes the transformations and warps the image again."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.loc, self.steps = styles.Head(6, [0.0] * 6), steps

    def forward(self, x: Tensor) -> Tensor:
        total = torch.eye(3).expand(x.shape[0], 3, 3)
        points = torch.cat([styles.mesh(), torch.ones(1, *styles.SIZE)]).flatten(1)
        warped = x
        for _ in range(self.steps):
            step = torch.eye(3) + F.pad(self.loc(warped).view(-1, 2, 3), (0, 0, 0, 1))
            total = total @ step
            grid = (total @ points)[:, :2].transpose(1, 2).reshape(-1, *styles.SIZE, 2)
            warped = F.grid_sample(x, grid, align_corners=False)
        return warped


class SeveralWarps(nn.Module):
    """Four warps of each image: thetas side by side, the image repeated."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.loc, self.count = styles.Head(3 * count, [0.5, 0.1, 0.0] * count), count

    def forward(self, x: Tensor) -> Tensor:
        p = self.loc(x).view(-1, 3, 1, 1)
        grid = styles.mesh().permute(1, 2, 0)[None] * p[:, :1] + p[:, 1:].permute(0, 2, 3, 1)
        images = x.repeat_interleave(self.count, dim=0)
        return F.grid_sample(images, grid, align_corners=False)


class ThetaInput(nn.Module):
    """Theta is an input."""

    def forward(self, x: Tensor, theta: Tensor) -> Tensor:
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=False), align_corners=False)


class SeveralOutputs(styles.AffineGrid):
    """The warped image, theta and a class score; the grid too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta = self.loc(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        warped = F.grid_sample(x, grid, align_corners=False)
        return warped, theta, warped.mean((1, 2, 3)), grid


class HalfGrid(nn.Module):
    """A float32 network whose grid is computed in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(6, styles.IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([styles.mesh(), torch.ones(1, *styles.SIZE)]).flatten(1).half()
        grid = torch.matmul(self.loc(x).view(-1, 2, 3).half(), points).transpose(1, 2).reshape(-1, *styles.SIZE, 2)
        return F.grid_sample(x, grid.float(), align_corners=False)


class DoubleGrid(nn.Module):
    """A float32 network whose grid is computed in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(6, styles.IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([styles.mesh(), torch.ones(1, *styles.SIZE)]).flatten(1).double()
        grid = torch.matmul(self.loc(x).view(-1, 2, 3).double(), points).transpose(1, 2).reshape(-1, *styles.SIZE, 2)
        return F.grid_sample(x, grid.float(), align_corners=False)


class CoarseFlow(nn.Module):
    """A flow field of a few control points, blended by fixed weights: linear, with one row per point."""

    def __init__(self, points: int = 4) -> None:
        super().__init__()
        self.loc = styles.Head(2 * points, [0.0] * 2 * points)
        weights = torch.rand(points, styles.SIZE[0] * styles.SIZE[1])
        self.register_buffer("weights", weights / weights.sum(0))

    def forward(self, x: Tensor) -> Tensor:
        flow = torch.einsum("ndk,kp->npd", self.loc(x).view(x.shape[0], 2, -1), self.weights)
        return F.grid_sample(x, styles.mesh().permute(1, 2, 0) + flow.view(-1, *styles.SIZE, 2), align_corners=False)


class ClampedTheta(nn.Module):
    """A clamp before the cut, which does not prevent fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(6, styles.IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.loc(x).clamp(-1.5, 1.5).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.size()), align_corners=True), align_corners=True)


class TwoHeads(nn.Module):
    """Scale and shift from two networks, each expanded to pixels before the other is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = styles.Head(2, [1.0, 1.0]), styles.Head(2, [0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        scaled = styles.mesh().permute(1, 2, 0)[None] * self.scale(x)[:, None, None, :]
        grid = scaled + self.shift(x)[:, None, None, :]
        return F.grid_sample(x, grid, align_corners=False)


class ClampedVolume(styles.Volume):
    """A 3-D grid clamped by hardtanh, in part outside of the volume."""

    def forward(self, x: Tensor) -> Tensor:
        volume = x[:, :, None].expand(-1, -1, 4, -1, -1) * torch.arange(1.0, 5.0)[:, None, None]
        grid = F.affine_grid(1.4 * self.loc(x).view(-1, 3, 4), list(volume.size()), align_corners=True)
        return F.grid_sample(volume, F.hardtanh(grid), align_corners=True).flatten(1)


class ReluGrid(styles.AffineGrid):
    """Negative coordinates are clamped to zero."""

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        return F.grid_sample(x, F.relu(grid), align_corners=False)


SIDE = 24


class CoarseGrid(nn.Module):
    """A head predicts a coarse grid, which is enlarged to the output's size."""

    def __init__(self, mode: str = "bilinear", smooth: bool = False) -> None:
        super().__init__()
        self.loc = styles.Head(24, [0.0] * 24)
        self.mode, self.smooth = mode, smooth
        self.register_buffer("blur", torch.full((2, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        field = F.interpolate(self.loc(x).view(-1, 2, 3, 4), (SIDE, SIDE), mode=self.mode, align_corners=True)
        if self.smooth:
            field = F.conv2d(field, self.blur, padding=1, groups=2)
        return F.grid_sample(x, field.permute(0, 2, 3, 1) + identity(), align_corners=True)


class Deformation(nn.Module):
    """A B-spline free-form deformation: transposed convolution of control points with the spline's kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(2 * 5 * 5, [0.0] * 50)
        t = torch.linspace(-2, 2, 31).abs()
        spline = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6)
        self.register_buffer("kernel", torch.outer(spline, spline).expand(2, 1, 31, 31).clone())

    def forward(self, x: Tensor) -> Tensor:
        points = 0.2 * self.loc(x).view(-1, 2, 5, 5)
        field = F.conv_transpose2d(points, self.kernel, stride=8, padding=15, groups=2)[:, :, 4:28, 4:28]
        return F.grid_sample(x, field.permute(0, 2, 3, 1) + identity(), align_corners=False)


class Mesh(nn.Module):
    """Vertices of a mesh, read per pixel by fancy indexing and blended by barycentric weights."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(2 * 9, [0.0] * 18)
        pixels = identity()[0].reshape(-1, 2)
        centers = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 3)] * 2, indexing="xy"), -1).view(-1, 2)
        nearest = torch.cdist(pixels, centers).topk(3, largest=False)
        self.register_buffer("corners", nearest.indices)
        self.register_buffer("weights", (1 / (nearest.values + 0.1)).softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        vertices = self.loc(x).view(-1, 9, 2)
        moved = (vertices[:, self.corners] * self.weights[..., None]).sum(2).view(-1, SIDE, SIDE, 2)
        return F.grid_sample(x, identity() + 0.1 * moved, align_corners=False)


def identity() -> Tensor:
    """[1, 24, 24, 2], corners aligned."""
    axis = torch.linspace(-1, 1, SIDE)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
