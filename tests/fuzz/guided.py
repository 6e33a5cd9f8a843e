"""``make fuzz GUIDED=1``: as ``fuzz``, but coverage-guided by atheris, in one process.

    python -m tests.fuzz.guided --kind onnx --seconds 60

atheris (``pip install -e '.[fuzz]'``) instruments the package's bytecode, and libFuzzer keeps each file that
reaches code that no file reached before. The mutators are ours. Commands run in this process, without the trial of
third-party files, so a crash of a native library ends the campaign; ``fuzz`` is there for those.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from stn_infer.extras import install
from tests.fuzz import inside, worker
from tests.fuzz.corpus import CORPUS, store
from tests.fuzz.fuzz import with_one_thread
from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import Seed, seeds
from tests.support.paths import ROOT

_COMMANDS = ("lint", "optimize", "run", "show", "verify", "cache")


def _cases(kinds: list[str]) -> list[tuple[Seed, str, tuple[str, ...]]]:
    """(seed, file to mutate, command): libFuzzer's input is the number of one, in two bytes, and the file's content."""
    return [
        (seed, target, command)
        for seed in seeds()
        for target in dict.fromkeys(seed.targets)
        for command in dict.fromkeys(seed.commands)
        if (not kinds or seed.kind in kinds) and (command[0] in _COMMANDS or command[:2] == ("bench", "compare"))
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="stop after so many seconds")
    parser.add_argument("--kind", nargs="*", default=[], help="kinds of files, such as onnx; default: all")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random numbers")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where findings go")
    options = parser.parse_args()
    with_one_thread()
    try:
        import atheris
    except ImportError:
        sys.exit(f"atheris is not installed: {install('fuzz')} (there are wheels up to Python 3.12 or so)")
    # an editable install's finder hides our modules from atheris; they are found in the source tree
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path.insert(0, str(ROOT))
    hook = atheris.instrument_imports(include=["stn_infer"])
    hook.__enter__()  # commands import their modules when they run
    with tempfile.TemporaryDirectory(prefix="stn-fuzz-") as folder:
        os.environ["XDG_CACHE_HOME"], os.environ["STN_TRIAL_SECONDS"] = folder, "0"
        cases = _cases(options.kind)
        for seed, _, command in {
            (seed.kind, command[0]): (seed, target, command) for seed, target, command in cases
        }.values():
            inside.run(command, seed, Path(folder) / "case")  # libFuzzer sees what is imported before it starts
        libfuzzer = Path(folder) / "corpus"
        libfuzzer.mkdir()
        for number, (seed, target, _) in enumerate(cases):
            (libfuzzer / str(number)).write_bytes(number.to_bytes(2, "big") + seed.files[target])
        found: set[str] = set()
        started = time.monotonic()
        tried = 0

        def one(data: bytes) -> None:
            nonlocal tried
            if len(data) < 2:
                return
            tried += 1
            seed, target, command = cases[int.from_bytes(data[:2], "big") % len(cases)]
            case = replace(seed, files={**seed.files, target: data[2:]})
            outcome = inside.run(command, case, Path(folder) / "case")
            finding = worker.judge(command, outcome)
            if finding and str(finding) not in found:
                found.add(str(finding))
                print(f"{finding}\nstored as {store(case, target, command, finding, options.corpus)}", flush=True)
            if time.monotonic() - started > options.seconds:
                print(f"{tried} files; {len(found)} different findings", flush=True)
                os._exit(1 if found else 0)

        def change(data: bytes, longest: int, seed: int) -> bytes:
            generator = random.Random(seed)
            number = data[:2] if len(data) >= 2 else b"\0\0"
            target = cases[int.from_bytes(number, "big") % len(cases)][1]
            return (number + mutate(target, data[2:], generator))[:longest]

        atheris.Setup(
            [
                *(
                    sys.argv[0],
                    f"-seed={options.seed}",
                    f"-max_total_time={options.seconds + 30}",
                    "-rss_limit_mb=8000",
                ),
                *("-timeout=120", "-max_len=200000", "-len_control=0", f"-artifact_prefix={folder}/", str(libfuzzer)),
            ],
            one,
            custom_mutator=change,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
