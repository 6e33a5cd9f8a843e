"""The sampler alone at a ready grid, in every runtime: ``stn::Sampler`` against what people have.

    python benchmarks/sampler.py -o benchmarks/results/sampler-MACHINE.json

Writes the inputs and a suite to a folder and runs ``stn-infer bench --suite`` on it: each variant in a process of its
own, in interleaved rounds. The grids are smooth displacement fields that leave the image here and there, as networks
predict them: zoom 1.1 and coarse normal noise of 5 % of the image, interpolated. ``--rough`` adds 5 % of noise per
point: neighboring points then read unrelated pixels.

An output may be off by what float32 can be off: :func:`float32_bound`, for each case.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stn_infer import plugin
from stn_infer.arrays import Array
from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.variants.pytorch import TorchVariant
from stn_infer.cli.main import main as command
from stn_infer.errors import ModelError
from stn_infer.reference.sampling import UNIT, coordinate_bound

VARIANTS = ("eager", "ort-plain", "ort", "ort-fused", "openvino", "benchmarks.sampler:fused_grid_sample")


class Sampler(nn.Module):
    """``grid_sample``, bilinear, zeros."""

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        """Sample ``image`` [N, C, *in] at ``grid`` [N, *out, D]."""
        return nn.functional.grid_sample(image, grid, align_corners=False)


# A suite identifies models by name, so each size has a factory.
def document() -> nn.Module:
    """For one page of 712x488, as a dewarping network reads it."""
    return Sampler()


def digits() -> nn.Module:
    """For 256 images of one channel and 28x28."""
    return Sampler()


def features() -> nn.Module:
    """For 8 maps of 32 channels and 64x64."""
    return Sampler()


def volume() -> nn.Module:
    """For one volume of 96^3."""
    return Sampler()


def many_features() -> nn.Module:
    """For 32 maps of 16 channels and 64x64."""
    return Sampler()


#: Factory to the batch size and the image's shape without batch.
CASES: dict[str, tuple[int, tuple[int, ...]]] = {
    "document": (1, (3, 712, 488)),
    "digits": (256, (1, 28, 28)),
    "features": (8, (32, 64, 64)),
    "volume": (1, (1, 96, 96, 96)),
    "many_features": (32, (16, 64, 64)),
}


def fused_grid_sample(setup: Setup) -> OpenVariant:
    """``stn_infer.fused.grid_sample`` in eager PyTorch.

    Raises:
        MissingDependencyError: the plugin library is not built.
        ModelError: the model is not one of this file's.
    """
    from stn_infer.fused import grid_sample

    shapes = setup.prepared.input_shapes
    if len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
        raise ModelError("fused_grid_sample runs the models of benchmarks.sampler only")
    plugin.load()  # raises with the reason
    variant = TorchVariant("eager", setup)

    class Fused(nn.Module):
        """The kernel at the same grid."""

        def forward(self, image: Tensor, grid: Tensor) -> Tensor:
            """As :class:`Sampler`."""
            return grid_sample(image, grid, align_corners=False)

    variant.module = variant.plain = Fused()
    describe = variant.describe
    variant.describe = lambda: {**describe(), "plugin": plugin.FILE_NAME}  # type: ignore[method-assign]
    return variant


def smooth_grid(count: int, size: Sequence[int], rough: bool = False, seed: int = 0) -> Array:
    """Grids [count, *size, D]: the pixel centers, moved by a coarse random field; ``rough``: and each by itself."""
    generator = torch.Generator().manual_seed(seed)
    rank = len(size)
    axes = [(2 * torch.arange(length) + 1) / length - 1 for length in size]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    coarse = 0.05 * torch.randn(count, rank, *[6] * rank, generator=generator)
    mode = "bilinear" if rank == 2 else "trilinear"
    moved = nn.functional.interpolate(coarse, tuple(size), mode=mode, align_corners=True).movedim(1, -1)
    grid = 0.9 * mesh + moved
    if rough:
        grid = grid + 0.05 * torch.randn(grid.shape, generator=generator)
    return np.asarray(grid.float().contiguous().numpy())


def float32_bound(image: Array, grid: Array) -> float:
    """Bound the error of bilinear samples [N, C, *out] in float32: the coordinates' error times the image's slope.

    The slope along an axis is the largest difference between two neighbors that a sample reads, where pixels outside of
    the image are zero. Weights and sums round by a few units in the last place more.
    """
    grid = grid.astype(np.float64)
    size = image.shape[2:]
    rank = len(size)
    off = coordinate_bound(grid, size)
    scale = np.array(size[::-1], np.float64)
    low = np.floor(((grid + 1) * scale - 1) / 2).astype(np.int64)
    padded = np.pad(image, [(0, 0), (0, 0), *[(1, 1)] * rank])
    corners = []
    for step in np.ndindex(*[2] * rank):
        at = [np.clip(low[..., rank - 1 - d] + 1 + step[d], 0, size[d] + 1) for d in range(rank)]
        sample = np.arange(len(image)).reshape(-1, *[1] * rank)
        corners.append(np.moveaxis(padded.transpose(0, *range(2, rank + 2), 1)[(sample, *at)], -1, 1))
    cell = np.stack(corners).reshape(*[2] * rank, *corners[0].shape)
    error = (4 * rank + 4) * UNIT * np.abs(cell).max(tuple(range(rank)))
    for axis in range(rank):
        slope = np.abs(np.diff(cell, axis=axis)).max(tuple(range(rank)))
        error = error + slope * off[:, None, ..., rank - 1 - axis]
    return float(error.max())


def write_suite(folder: Path, rough: bool, names: Sequence[str], variants: Sequence[str]) -> Path:
    """Write the inputs of the cases ``names`` and their suite to a folder; returns the suite's path."""
    lines = [f"variants = {list(variants)!r}".replace("'", '"'), "threads = 2"]
    for name in names:
        batch, shape = CASES[name]
        image = np.random.default_rng(1).random((batch, *shape), np.float32)
        grid = smooth_grid(batch, shape[1:], rough)
        np.savez(folder / f"{name}.npz", image=image, grid=grid)
        shapes = [list(shape), list(grid.shape[1:])]
        lines += ["", "[[model]]", f'source = "benchmarks.sampler:{name}"', f"batch_sizes = [{batch}]"]
        lines += [f"input_shapes = {shapes}", f'inputs = ["{name}.npz"]']
        lines += [f"tolerance = {float32_bound(image, grid):.2e}"]
    suite = folder / "sampler.toml"
    suite.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return suite


def main() -> None:
    """Write the suite and run it; unknown options go to ``stn-infer bench``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rough", action="store_true", help="grids whose neighboring points read unrelated pixels")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--variant", action="append", help=f"default: {', '.join(VARIANTS)}")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        suite = write_suite(Path(folder), options.rough, options.case or list(CASES), options.variant or VARIANTS)
        command(["bench", "--suite", str(suite), "--allow-code", *rest])


if __name__ == "__main__":
    main()
