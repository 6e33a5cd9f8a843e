"""Findings as small zip files: the folder of the case and its command line."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.seeds import Command, Seed
from tests.fuzz.worker import Finding

CORPUS = Path(__file__).parent / "corpus"
_DESCRIPTION = "case.json"


@dataclass(frozen=True)
class Stored:
    """A stored finding: ``found`` is what was broken; ``trial``: whether to replay it with the trial of ONNX files."""

    name: str
    seed: Seed
    command: Command
    found: str
    trial: bool


def store(
    seed: Seed, target: str, command: Command, finding: Finding, folder: Path = CORPUS, *, trial: bool = False
) -> Path:
    """Write a finding as a zip file whose name says what it is."""
    folder.mkdir(exist_ok=True)
    words = re.sub(r"\W+", "-", f"{command[0]}-{seed.kind}-{finding.what}")
    digest = hashlib.sha256(seed.files[target] + repr(command).encode()).hexdigest()[:6]
    path = folder / f"{words}-{digest}.zip"
    used = {name: content for name, content in seed.files.items() if _is_used(name, target, command)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        description = {"command": command, "kind": seed.kind, "found": finding.what, "trial": trial}
        archive.writestr(zipfile.ZipInfo(_DESCRIPTION), json.dumps(description, indent=1))
        for name, content in used.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def _is_used(name: str, target: str, command: Command) -> bool:
    folder_read = "in" in command or any(part.startswith("@") for part in command)
    beside = name.startswith(tuple(part.rsplit(".", 1)[0] for part in command if part.startswith("in/")))
    return name == target or beside or folder_read or not name.startswith("in/")


def read_corpus(folder: Path = CORPUS) -> list[Stored]:
    """All stored findings, by name."""
    found = []
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read(_DESCRIPTION))
            files = {name: archive.read(name) for name in archive.namelist() if name != _DESCRIPTION}
        seed = Seed(description["kind"], path.stem, files, (), ())
        found.append(Stored(path.stem, seed, tuple(description["command"]), description["found"], description["trial"]))
    return found
