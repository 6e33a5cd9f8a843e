"""The pictures of ``run --save-images``: each input with the sampled regions, and what every sampler returned.

    inputs/0000012-plate.png    the input as the model saw it, with outlines, label and confidence
    warped/0000012-plate.png    the warped image; with several transformers warped_1/, warped_2/, ...
    pictures-00000.csv          which input is which file, for each file of predictions

The number is the input's position in the job, so that no two files have one name. A file appears when it is complete.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stn_infer.arrays import Array
from stn_infer.data.inputs import Sample
from stn_infer.errors import OutputError
from stn_infer.files import is_leftover, remove_leftovers, write_atomically, write_unflushed
from stn_infer.pipeline.annotate import annotated
from stn_infer.pipeline.decoder import Decoder
from stn_infer.pipeline.formats import printable
from stn_infer.pipeline.warps import WatchedSampler
from stn_infer.predictions import Classifier
from stn_infer.preprocess.geometry import Placement
from stn_infer.preprocess.pixels import denormalize
from stn_infer.preprocess.rule import Preprocess

_LONGEST_STEM = 120  # bytes
_ROW = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)
_OWN = re.compile(r"(inputs|warped(_\d+)?)/\d{7,}-[^/]*\.png|pictures-\d{5,}\.csv")


@dataclass(frozen=True)
class Pictures:
    """Writes the pictures of a job; safe to share between threads.

    Attributes:
        folder: where.
        warps: the samplers.
        preprocess: how the model's input was made from pixels.
        inner: how the values that the samplers read were made from pixels, the graph's own preprocessing included.
        places: where the model's image lies in the picture, if the graph resizes and crops it: height and width.
        image: the name of the input that is a picture; empty if there is none.
        scores: the name of the output with the scores of classes; empty if there is none.
        classifier, decoder: of the text below an input.
    """

    folder: Path
    warps: tuple[WatchedSampler, ...]
    preprocess: Preprocess | None
    inner: Preprocess | None
    places: tuple[Placement, Placement] | None
    image: str
    scores: str
    classifier: Classifier
    decoder: Decoder

    def check(self, resume: bool, overwrite: bool) -> None:
        """Check the folder, which must be new or empty, unless ``resume``, or with ``overwrite`` have pictures only.

        Raises:
            OutputError: it is not.
        """
        found = [] if resume else self._found()
        if found and not overwrite:
            raise OutputError(f"{self.folder} is not empty; give a new folder, or --overwrite to replace the pictures")
        others = [path for path in found if not _is_own(path.relative_to(self.folder))]
        if others:
            raise OutputError(
                f"{self.folder} has files that are not a job's pictures ({others[0]}); give another folder"
            )

    def open(self, overwrite: bool) -> None:
        """Make the folders; with ``overwrite``, delete the pictures that are there.

        Raises:
            OutputError: they cannot be made or deleted.
        """
        try:
            for path in self._found() if overwrite else ():
                if _is_own(path.relative_to(self.folder)):
                    path.unlink()
            for name in ("inputs", *self._names):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.folder / name)
        except OSError as error:
            raise OutputError(f"cannot create the folder {self.folder}: {error.strerror or error}") from error

    def _found(self) -> list[Path]:
        return [Path(top, name) for top, _, names in os.walk(self.folder) for name in names]

    @property
    def _names(self) -> tuple[str, ...]:
        count = len(self.warps)
        return ("warped",) if count == 1 else tuple(f"warped_{number}" for number in range(1, count + 1))

    def save(
        self,
        first: int,
        samples: Sequence[Sample],
        rows: Sequence[int],
        good: Sequence[int],
        pictures: Array,
        values: Mapping[str, Array],
    ) -> None:
        """Write the pictures of some samples of a batch.

        Args:
            first: the position of the batch's first sample in the job.
            samples: of the batch.
            rows: the positions of those that the model ran.
            good: which of ``rows`` are saved.
            pictures: what :meth:`pictures` returned for them.
            values: all outputs of the watched model for them.

        Raises:
            OutputError: a file cannot be written.
        """
        each = [
            images_per_sample(values[warp.outputs["image"]], values[warp.outputs["warped"]], len(rows))
            for warp in self.warps
        ]
        outlines = [
            self._outline(warp, values) if count == 1 else None for warp, count in zip(self.warps, each, strict=True)
        ]
        texts = self._texts(values, len(rows))
        for index in good:
            name = picture_name(first + rows[index], samples[rows[index]].name)
            lines = [None if outline is None else outline[index] for outline in outlines]
            picture = annotated(_image(pictures[index]), lines, texts[index])
            write_unflushed(self.folder / "inputs" / name, _png(picture))
            for folder, warp, count in zip(self._names, self.warps, each, strict=True):
                rule = self.inner if warp.reads == "picture" else None
                for number in range(count):
                    path = self.folder / folder / name
                    crop = _visible(values[warp.outputs["warped"]][index * count + number], rule)
                    numbered = path.with_name(f"{path.stem}-{number + 1}.png") if count > 1 else path
                    write_unflushed(numbered, _png(_image(crop)))

    def pictures(self, inputs: Mapping[str, Array]) -> Array:
        """The pictures [N, C, H, W] in RGB or gray from pixels or from inputs of the model; a copy."""
        values = inputs.get(self.image)
        if values is None:
            count = len(next(iter(inputs.values())))
            return np.zeros((count, 1, 8, 8), np.uint8)
        return np.stack([_visible(each, self.preprocess) for each in values])

    def write_index(self, shard: int, rows: Sequence[tuple[int, str]]) -> None:
        """Write which input is which file, for (position, name) of the predicted samples of a shard.

        Raises:
            OutputError: it cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("input", "picture"))
        writer.writerows((name, picture_name(position, name)) for position, name in rows)
        write_atomically(self.folder / f"pictures-{shard:05d}.csv", text.getvalue().encode())

    def _outline(self, warp: WatchedSampler, values: Mapping[str, Array]) -> Array | None:
        found = warp.outline(values)
        if found is None or self.places is None:
            return found
        lengths, offsets, scaled = (
            np.array([getattr(place, name) for place in self.places[::-1]], np.float64)
            for name in ("length", "offset", "scaled")
        )
        return np.asarray((found * lengths + offsets) / scaled)

    def _texts(self, values: Mapping[str, Array], count: int) -> list[list[str]]:
        texts: list[list[str]] = [[] for _ in range(count)]
        if self.scores:
            ranked = self.classifier.rank(values[self.scores])
            for row, lines in enumerate(texts):
                lines += [each.describe() for each in ranked.shown(row) or (ranked.best(row),)]
        for decoding in self.decoder.decodings:
            if decoding.kind == "sequence":
                for lines, text in zip(texts, self.decoder.texts(decoding, values), strict=True):
                    lines.append(f"{decoding.name}: {text}")
        return texts


def _visible(values: Array, rule: Preprocess | None) -> NDArray[np.uint8]:
    """An image [C, H, W] as pixels: those that ``rule`` made it of; without a rule, scaled to its own range."""
    if rule is not None and len(values) == rule.channels:
        pixels = values if values.dtype == np.uint8 else denormalize(values[None], rule)[0]
        return np.array(pixels[::-1] if rule.color == "bgr" else pixels)
    shown = values.astype(np.float64) if len(values) in (1, 3) else values.mean(axis=0, dtype=np.float64)[None]
    shown = np.where(np.isfinite(shown), shown, 0)
    low, high = shown.min(), shown.max()
    return np.asarray((shown - low) * (255 / (high - low or 1)) + 0.5).astype(np.uint8)


def picture_name(position: int, name: str) -> str:
    """The file name for the input ``name`` at ``position`` of a job; no two positions have the same."""
    row = _ROW.fullmatch(name)
    base = os.path.basename(printable(row[1] if row else name))
    plain = re.sub(r"[^\w.-]+", "_", base.rpartition(".")[0] or base)
    short = plain.encode()[:_LONGEST_STEM].decode(errors="ignore")
    return f"{position:07d}-{short}{'_' + row[2] if row else ''}.png"


def _is_own(path: Path) -> bool:
    """Whether a path relative to the folder is that of a file that :class:`Pictures` writes."""
    return _OWN.fullmatch(path.as_posix()) is not None or is_leftover(path.name)


def images_per_sample(image: Array, warped: Array, samples: int) -> int:
    """How many images a sampler returned per sample, one after the other; 0 if they cannot be told apart by sample.

    A model that repeats its whole batch, such as by ``torch.cat([x, x])``, does not return a sample's images together.
    """
    if warped.ndim != 4 or len(warped) % samples:
        return 0
    count = len(warped) // samples
    if count <= 1 or samples == 1 or len(image) != len(warped):
        return count
    together = image.reshape(samples, count, *image.shape[1:])
    apart = image.reshape(count, samples, *image.shape[1:])
    repeated = bool((apart == apart[:1]).all()) and not bool((together == together[:, :1]).all())
    return 0 if repeated else count


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()
