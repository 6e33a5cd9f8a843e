"""Writes the folder of a model in a Triton repository: all of it or nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath

import stn_infer.ranking
from stn_infer.errors import ModelError, OutputError, UsageError
from stn_infer.files import temporary_folder
from stn_infer.printing import shown
from stn_infer.proto.load import external_tensors, read_graph
from stn_infer.serving.config import LABELS_FILE, config_text
from stn_infer.serving.readme import readme_text
from stn_infer.serving.service import Service

CONFIG_FILE = "config.pbtxt"
README_FILE = "README.md"
_MODEL_FILES = {"python": "model.onnx", "onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHARED_IMPORT = "from stn_infer.ranking import best_first, probabilities\n"


def check_name(name: str) -> None:
    """Check the name of a model, which is a folder's and part of a URL.

    Raises:
        UsageError: it has other characters than letters, digits, ``_``, ``.`` and ``-``, or is too long.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"a model's name has up to 128 letters, digits, '_', '.' and '-', not {name!r}; give --name")


def name_from(text: str) -> str:
    """The name of a model that is called ``text``: other characters than a name's become ``_``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".-")[:128] or "model"


def check_place(repository: Path, name: str, *, overwrite: bool = False) -> None:
    """Check that a model's folder can be written, before a long computation.

    Raises:
        OutputError: there is a model or another file of that name, the repository is not a folder, or it, or the
            folder to make it in, is missing or not writable.
    """
    home = repository if repository.exists() else repository.parent
    if not home.is_dir():
        problem = "is not a folder" if home == repository else f"cannot be made: no such folder: {home}"
        raise OutputError(f"the repository {repository} {problem}")
    if (repository / CONFIG_FILE).exists():
        raise OutputError(f"{repository} is the folder of a model; name the repository that it is in")
    if not os.access(home, os.W_OK):
        raise OutputError(f"cannot write the repository {repository}: the folder {home} is not writable")
    folder = repository / name
    if not os.path.lexists(folder):
        return
    if not (folder / CONFIG_FILE).is_file():
        raise OutputError(f"{folder} exists and is not the folder of a model; give another --name")
    if not overwrite:
        raise OutputError(f"{repository} has a model {name!r}; give another --name, or --overwrite to replace it")


def files_of(service: Service, folder: PurePosixPath, engine: str = "") -> dict[str, str]:
    """The texts of a model's folder by file: all but the model and the libraries.

    Args:
        service: the model.
        folder: the absolute path of the model's folder where it is served.
        engine: what the README says of an engine.

    Raises:
        UsageError: as :func:`~stn_infer.serving.config.config_text`.
    """
    files = {CONFIG_FILE: config_text(service, folder), README_FILE: readme_text(service, folder, engine)}
    if service.labels:
        files[LABELS_FILE] = "".join(f"{shown(label)}\n" for label in service.labels)
    if service.platform == "python":
        files["1/model.py"] = program_text()
        files["1/settings.json"] = json.dumps(_settings(service), indent=1) + "\n"
    return files


def _settings(service: Service) -> dict[str, object]:
    classes = service.classes
    return {
        "library": service.library,
        "labels": [] if classes is None else list(classes.labels),
        "classes": None
        if classes is None
        else {
            "outputs": classes.names,
            "top_k": classes.top_k,
            "activation": classes.scores.activation,
            "applied": classes.scores.applied,
        },
    }


def program_text() -> str:
    """The Python platform's ``model.py``: the program, and in place of their import the functions of ``run``."""
    ranking = Path(stn_infer.ranking.__file__).read_text(encoding="utf-8")
    functions = [
        ast.get_source_segment(ranking, node) for node in ast.parse(ranking).body if isinstance(node, ast.FunctionDef)
    ]
    # the program is not imported: Triton's module is only in its server
    text = Path(__file__).with_name("program.py").read_text(encoding="utf-8")
    return text.replace(_SHARED_IMPORT, "\n" + "\n\n\n".join(filter(None, functions)) + "\n")


def write_model(
    repository: Path,
    service: Service,
    model: Path | bytes,
    libraries: tuple[Path, ...] = (),
    *,
    folder: PurePosixPath | None = None,
    engine: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a model's folder under another name and rename it; a repository that does not exist is made with it.

    Args:
        repository: an absolute path.
        service: the model.
        model: an ONNX file, which is copied with its external data, or the content of a file.
        libraries: files to copy into the model's folder.
        folder: the absolute path of the model's folder where it is served; None: its path here.
        engine: what the README says of an engine.
        overwrite: replace a model of that name.

    Returns:
        The model's folder.

    Raises:
        OutputError: it cannot be written, or there is one of that name; nothing is left behind.
        ModelError: the model cannot be read.
        UsageError: as :func:`~stn_infer.serving.config.config_text`.
    """
    check_place(repository, service.name, overwrite=overwrite)
    target = repository / service.name
    texts = files_of(service, PurePosixPath(target) if folder is None else folder, engine)
    try:
        with temporary_folder(_staging(repository), f".{repository.name}.") as staging:
            made = staging / "new" / service.name
            (made / "1").mkdir(parents=True)
            for path, text in texts.items():
                (made / path).write_text(text, encoding="utf-8")
            _copy_model(model, made / "1" / _MODEL_FILES[service.platform])
            for library in libraries:
                shutil.copyfile(library, made / library.name)
            if not repository.exists():
                made.parent.rename(repository)
                return target
            replaced = staging / "replaced"  # goes with the temporary folder
            if overwrite and target.exists():
                target.rename(replaced)
            try:
                made.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _staging(repository: Path) -> Path:
    """Where a model is written before it appears: beside the repository, which a server may be watching.

    A repository on a file system of its own is not renamed into from outside.
    """
    beside = repository.parent
    if not repository.exists():
        return beside
    same = repository.stat().st_dev == beside.stat().st_dev
    return beside if same and os.access(beside, os.W_OK) else repository


def _copy_model(model: Path | bytes, target: Path) -> None:
    """Write a model, and the external data of an ONNX file to the same places beside it."""
    if isinstance(model, bytes):
        target.write_bytes(model)
        return
    shutil.copyfile(model, target)
    weights: dict[Path, Path] = {}  # several names may link to one file
    for tensor, place in external_tensors(read_graph(model), model.parent):
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        weights[target.parent / location] = place.path
    for copy, source in weights.items():
        if copy.exists():
            raise ModelError(f"{model} keeps weights in {copy.name}, which is the name of a file of the repository")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
