"""Files on the Hugging Face Hub: ``hf://org/repo/file``, with ``@revision`` after the file or the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stn_infer.errors import MissingDependencyError, SourceError, UsageError, one_line
from stn_infer.extras import install
from stn_infer.remote import is_url

_BEGIN = re.compile(r"hf:/+")  # a Path makes one slash of two
_FORM = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<early>[^/@]+))?/(?P<file>[^@]+?)(@(?P<late>[^@]+))?",
)

# Names of the client's exceptions, the most special first, and what to report.
_PROBLEMS = {
    "GatedRepoError": "the repository is gated; accept its conditions on its page and log in with: hf auth login",
    "RepositoryNotFoundError": "there is no such repository, or it is private; check the name, or use hf auth login",
    "RevisionNotFoundError": "the repository has no such revision",
    "LocalEntryNotFoundError": "it is not in the cache, and the Hub cannot be reached",
    "EntryNotFoundError": "the repository has no such file",
}


def is_remote(name: object) -> bool:
    """Whether a source or a checkpoint is named by ``hf://``."""
    return isinstance(name, (str, Path)) and _BEGIN.match(str(name)) is not None


def local(name: str | Path) -> str | Path:
    """The path of a file on the Hub, downloaded into the client's cache unless it is there; any other name as it is.

    Raises:
        UsageError: it begins with ``hf:`` and has another form.
        MissingDependencyError: huggingface_hub is not installed.
        SourceError: it cannot be downloaded; the message says why. Or it is another URL.
    """
    if not is_remote(name):
        if is_url(str(name)):
            raise SourceError(f"{name}: models and checkpoints are files of this machine, or hf://; download it first")
        return name
    text = _BEGIN.sub("", str(name), count=1)
    found = _FORM.fullmatch(text)
    revision = None if found is None else found["early"] or found["late"]
    # each becomes a path in the client's cache
    named = [] if found is None else [found["repo"], found["file"], *([revision] if revision else [])]
    parts = [part for name in named for part in name.split("/")]
    if found is None or (found["early"] and found["late"]) or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"expected hf://ORGANIZATION/REPOSITORY/FILE, with @REVISION at the end if wanted; got {name}")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDependencyError(f"hf:// needs huggingface_hub ({one_line(error)}); {install('hub')}") from None
    try:
        return Path(
            hf_hub_download(
                found["repo"],
                found["file"],
                revision=revision,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )
    except Exception as error:  # of the client, of its HTTP library or of the system: there is no common type
        kinds = [kind.__name__ for kind in type(error).__mro__]
        problem = next((text for kind, text in _PROBLEMS.items() if kind in kinds), None)
        raise SourceError(f"hf://{text}: {problem or f'cannot be downloaded: {one_line(error, 200)}'}") from None
