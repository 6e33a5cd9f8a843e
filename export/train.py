"""Train the shipped models and the paper's experiments, one run per seed; baselines (no STN) with the same settings.

    python export/train.py                       all recipes in stn_infer/models/shipped
    python export/train.py st-cnn-affine-rts     one of them
    python export/train.py mine.toml -o results  your own
    python export/train.py --cell st-cnn-tps-e   an experiment of the paper (needs `make mnist`)
    python export/train.py --paper               every one of them that is missing
    python export/train.py --cell svhn-64-st-multi --data FOLDER  with the unpacked SVHN (train/, test/) or CUB_200_2011

A run continues after an interruption from its last complete epoch; completed runs are kept in the work folder, those of
cells with their recipe, NAME.toml beside NAME.safetensors, which `stn-infer export WORK/NAME.toml` takes. The
weights of the first seed are shipped: selecting the best by test error would bias the reported error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export import paper
from export.cells import Cell, cells, more_cells
from export.experiments import Experiment, FolderExperiment, experiments, folder_experiments
from export.recipe_file import text_of
from export.trainer import Run, perform
from stn_infer.errors import SourceError, StnInferError, UsageError
from stn_infer.files import write_atomically
from stn_infer.models.catalog import FOLDER
from stn_infer.models.recipes import PRECISIONS, Recipe, load_recipe

Task = tuple[Run, Path, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of shipped models, or TOML files (default: all shipped)")
    parser.add_argument("--cell", action="append", default=[], help="an experiment of the paper (repeatable)")
    parser.add_argument("--paper", action="store_true", help="all experiments of the paper")
    parser.add_argument("-o", "--output", type=Path, help="folder for weights and errors (default: the recipe's)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="folder for runs (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs, one thread each (default: 2)")
    parser.add_argument("--epochs", type=int, help="passes over the digits (default: the recipe's)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of the convolutions in training (default: the recipe's)"
    )
    parser.add_argument("--data", type=Path, help="the unpacked data set of cells svhn-* or cub-*")
    parser.add_argument(
        "--validate", action="store_true", help="measure cells on validation digits; nothing is recorded"
    )
    parser.add_argument(
        "--snapshots",
        type=int,
        default=0,
        metavar="COUNT",
        help="keep so many snapshots of a run's weights in WORK/NAME.snapshots, for stn-infer show --snapshots",
    )
    arguments = parser.parse_args()
    if arguments.cell or arguments.paper:
        _train_cells(arguments)
        return
    _check_data((), arguments.data)
    names = arguments.recipes or sorted(path.stem for path in FOLDER.glob("*.toml"))
    paths = [Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml" for name in names]
    recipes = [_changed(load_recipe(path), arguments) for path in paths]
    runs = list(_runs(recipes))
    _check_snapshots(runs, arguments.snapshots, (arguments.work,))
    _perform_all(runs, arguments)
    for path, recipe in zip(paths, recipes, strict=True):
        print(_collect(recipe, arguments.work, arguments.output or path.parent), flush=True)


def _train_cells(arguments: argparse.Namespace) -> None:
    every: list[Cell | Experiment] = [*cells(), *experiments()]
    known = {cell.name: cell for cell in [*every, *more_cells(), *folder_experiments()]}
    unknown = sorted(set(arguments.cell) - set(known))
    if unknown:
        raise UsageError(f"no such cell: {unknown[0]}; expected one of {', '.join(known)}")
    chosen = every if arguments.paper else [known[name] for name in arguments.cell]
    _check_data(chosen, arguments.data)
    runs = [Run(_changed(cell.recipe(), arguments), False, 0, arguments.validate, arguments.data) for cell in chosen]
    output = arguments.output or paper.RESULTS
    _check_snapshots(runs, arguments.snapshots, (arguments.work, output))
    _perform_all([run for run in runs if run.finished(output) is None], arguments)
    for cell, run in zip(chosen, runs, strict=True):
        figures = run.finished(arguments.work)
        if figures is not None:
            beside = "" if cell.paper is None else f", paper {cell.paper} %"
            print(f"{run.name}: error {figures['error']:.2f} %{beside}", flush=True)
            write_atomically(arguments.work / f"{run.name}.toml", text_of(run.recipe).encode())
            if not arguments.validate:
                output.mkdir(parents=True, exist_ok=True)
                write_atomically(output / f"{run.name}.json", (json.dumps(figures) + "\n").encode())
    if output == paper.RESULTS and not arguments.validate:
        paper.write()


def _check_data(chosen: Iterable[Cell | Experiment], folder: Path | None) -> None:
    read = {cell.data: cell.name for cell in chosen if isinstance(cell, FolderExperiment)}
    if len(read) > 1:
        raise UsageError(f"{' and '.join(read.values())} read different data sets; train them one after the other")
    if read and folder is None:
        raise UsageError(f"{next(iter(read.values()))} is trained on your own data set; give its folder with --data")
    if folder is not None and not read:
        raise UsageError("--data is the folder of cells svhn-* or cub-*; the others compose their samples")


def _check_snapshots(runs: Iterable[Run], count: int, folders: Iterable[Path]) -> None:
    if count < 0:
        raise UsageError(f"--snapshots is a number of at least 0, not {count}")
    for run in runs if count else ():
        for folder in folders:
            if run.finished(folder) is not None:
                raise UsageError(
                    f"{run.name} is complete in {folder}, so that no snapshots of it can be kept; "
                    "give other folders with --work and -o"
                )


def _changed(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """With the settings of the command line."""
    if recipe.training is None:
        return recipe
    given = {"epochs": arguments.epochs, "precision": arguments.precision}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(recipe, training=replace(recipe.training, **given))


def _perform_all(runs: Iterable[Run], arguments: argparse.Namespace) -> None:
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = [run for run in runs if run.finished(arguments.work) is None]
    tasks: list[Task] = [(replace(run, snapshots=arguments.snapshots), arguments.work, device) for run in missing]
    if tasks:
        with multiprocessing.get_context("spawn").Pool(min(arguments.jobs, len(tasks))) as pool:
            for line in pool.imap_unordered(_perform, tasks, chunksize=1):
                print(line, flush=True)


def _perform(task: Task) -> str:
    run, work, device = task
    torch.set_num_threads(1)
    error = perform(run, work, lambda line: print(line, flush=True), device)
    return f"{run.name}: error {error:.2f} %"


def _runs(recipes: list[Recipe]) -> Iterator[Run]:
    for turn in range(max(len(_seeds(recipe)) for recipe in recipes)):
        for recipe in recipes:
            if turn < len(_seeds(recipe)):
                yield Run(recipe, False, _seeds(recipe)[turn])
                if recipe.twin:
                    yield Run(recipe, True, _seeds(recipe)[turn])


def _seeds(recipe: Recipe) -> tuple[int, ...]:
    if recipe.data is None or recipe.training is None:
        raise SourceError(f"recipe {recipe.name} cannot be trained: it needs [data] and [training]")
    return recipe.training.seeds


def _collect(recipe: Recipe, work: Path, output: Path) -> str:
    seeds = _seeds(recipe)

    def figures_of(twin: bool) -> list[dict[str, float]]:
        return [json.loads((work / f"{Run(recipe, twin, seed).name}.json").read_text()) for seed in seeds]

    own = figures_of(False)
    baseline = figures_of(True) if recipe.twin else []
    figures = {
        "seeds": list(seeds),
        "errors": [round(figure["error"], 4) for figure in own],
        "twin": recipe.twin,
        "twin_errors": [round(figure["error"], 4) for figure in baseline],
        "shipped_seed": seeds[0],
        "images": own[0]["images"],
    }
    output.mkdir(parents=True, exist_ok=True)
    weights = (work / f"{Run(recipe, False, seeds[0]).name}.safetensors").read_bytes()
    write_atomically(output / f"{recipe.name}.safetensors", weights)
    write_atomically(output / f"{recipe.name}.json", (json.dumps(figures, indent=2) + "\n").encode())
    mean = fmean(figure["error"] for figure in own)
    beside = f", baseline {recipe.twin} {fmean(figure['error'] for figure in baseline):.2f} %" if baseline else ""
    return f"{recipe.name}: test error {mean:.2f} % (mean of {len(seeds)} seeds){beside}"


if __name__ == "__main__":
    try:
        main()
    except StnInferError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last complete epoch", file=sys.stderr)
        os._exit(130)
