"""A network's weights as a file, and snapshots of them along a training run, for ``stn-infer show --snapshots``."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import nn

from stn_infer.files import write_atomically
from stn_infer.pictures.snapshots import STEP


def serialized(network: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """The network's weights in the safetensors format."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return save(weights, metadata)


def snapshot_steps(steps: int, count: int) -> frozenset[int]:
    """The steps of ``count`` snapshots, of which 0 and ``steps`` are two; denser at first, where more changes."""
    if count == 1:
        return frozenset([steps])
    return frozenset(round(steps * (index / (count - 1)) ** 2) for index in range(count))


class Snapshots:
    """The folder of a run's snapshots, ``step-NUMBER.safetensors``.

    Args:
        folder: made with the first snapshot.
        steps: of the whole run.
        count: of snapshots; 0: none.
        resumed: whether a part of the run is done; otherwise those of an earlier run are deleted.
    """

    def __init__(self, folder: Path, steps: int, count: int, *, resumed: bool) -> None:
        self._folder, self._wanted = folder, snapshot_steps(steps, count)
        if count and not resumed:
            for path in folder.glob("step-*.safetensors"):
                path.unlink()

    def keep(self, network: nn.Module, step: int) -> None:
        """Write a snapshot if one is due after this many steps."""
        if step in self._wanted:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / f"step-{step:07}.safetensors", serialized(network, {STEP: str(step)}))
