"""Files whose payload must not run, through every command, as everything that a command takes.

    python -m tests.support.payloads

Prints the number of (file, command) pairs, and how the commands ended; exits with 1 if a payload ran, or if a command
ended otherwise than in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.forked import command, start
from tests.support.payload_files import write

#: {F} is the file, {out} a new folder.
COMMANDS = (
    "export {F} -o {out}/m.onnx --input-shape 4",
    "export fcn --weights {F} -o {out}/m.onnx",
    "export dtrb --weights {F} -o {out}/m.onnx",
    "export fcn --calibrate {F} --precision int8 -o {out}/m.onnx",
    "run model.onnx inputs.npy --labels {F} -o {out}/job --format npz",
    "run {F} inputs.npy -o {out}/job",
    "run model.onnx {F} -o {out}/job --format npz",
    "run model.onnx @{F} -o {out}/job --format npz",
    "run fcn inputs.npy --weights {F} --backend eager -o {out}/job",
    "run {F} inputs.npy --backend tensorrt -o {out}/job",
    "bench {F} --quick --batch-sizes 1 -o {out}/r.json",
    "bench fcn --weights {F} --quick --batch-sizes 1",
    "bench model.onnx --source {F} --quick --batch-sizes 1",
    "bench --suite {F} --quick",
    "bench --resume {F}",
    "bench compare {F} {F}",
    "bench report {F} -o {out}",
    "verify {F} --backend ort",
    "verify model.onnx --source {F} --backend ort",
    "verify model.onnx --against {F} --backend ort",
    "verify model.onnx --inputs {F} --backend ort",
    "show {F} inputs.npy -o {out}/p.png",
    "show model.onnx {F} -o {out}/p.png",
    "lint {F}",
    "optimize {F} -o {out}/m.onnx",
    "build {F} -o {out}/m.engine --runtime tensorrt-rtx --target sm89",
    "build fcn --weights {F} -o {out}/m.engine --runtime tensorrt-rtx --target sm89",
    "cache list --cache {F}",
)
#: In processes of their own: what they import is not there yet.
APART = (
    "export fcn -o {out}/m.onnx",
    "run model.onnx inputs.npy -o {out}/job --format npz",
    "run fcn inputs.npy -o {out}/job --backend eager",
    "bench model.onnx --variant ort --batch-sizes 1 --rounds 1 --seconds 0.02 --samples 2",
    "verify model.onnx --backend ort",
    "show model.onnx inputs.npy -o {out}/p.png",
    "lint model.onnx",
    "optimize model.onnx -o {out}/m.onnx",
    "build model.onnx -o {out}/m.engine --runtime tensorrt-rtx --target sm89",
    "models",
    "doctor",
    "cache list",
    "plugin info",
)
_TIMEOUT = 900


def preload() -> None:
    """Import what the commands import, so that the forks don't."""
    import matplotlib.figure  # noqa: F401
    import torch.export  # noqa: F401

    import stn_infer.api.engines.build
    import stn_infer.api.export
    import stn_infer.api.lint
    import stn_infer.api.optimize
    import stn_infer.api.show
    import stn_infer.api.verify
    import stn_infer.fusion.fuse
    import stn_infer.torch_export.plain  # noqa: F401
    from tests.support.forked import preload

    preload()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th pair")
    parser.add_argument("--skip", type=int, default=0, help="not these first files")
    parser.add_argument("--files", type=int, help="only so many files")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    ran, wrong = [], []
    root = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="stn-payloads-") as scratch:
        folder, mark, out = Path(scratch) / "files", Path(scratch) / "ran", Path(scratch) / "out"
        folder.mkdir()
        names = write(folder, mark)[arguments.skip :][: arguments.files]
        assert not mark.exists(), "writing them ran one"
        preload()
        os.chdir(folder)
        environment = {
            "PYTHONPATH": f":{folder}:{root}:",
            "PATH": f"{folder}/bin:{os.environ['PATH']}",  # has a Ghostscript
            "XDG_CACHE_HOME": f"{scratch}/cache",
            "TMPDIR": f"{scratch}/tmp",
        }
        os.mkdir(environment["TMPDIR"])
        pairs = [line.format(F=name, out=out) for name in names for line in COMMANDS]
        pairs = pairs[:: arguments.every]
        for pair in pairs:
            os.makedirs(out, exist_ok=True)
            fork = start(command(pair.split()), Path(scratch) / "said", environment=environment)
            try:
                code = fork.wait(_TIMEOUT)
            except TimeoutError:
                code = -1000
            lines = fork.lines
            counts[f"exit code {code}"] += 1
            if mark.exists():
                ran.append(pair)
                mark.unlink()
                print("RAN", pair, file=sys.stderr, flush=True)
            errors = [line for line in lines if line.startswith("error")]
            if code not in (0, 1, 2, 3, 4) or "internal error" in str(lines) or "Traceback" in str(lines):
                wrong.append(f"{pair}: {code} {lines[-3:]}")
                print("WRONG", wrong[-1], file=sys.stderr, flush=True)
            elif code in (1, 2) and len(errors) != 1 and not pair.startswith("lint"):  # whose findings are its output
                wrong.append(f"{pair}: {errors}")
                print("LINES", wrong[-1], file=sys.stderr, flush=True)
            shutil.rmtree(out, ignore_errors=True)
        for line in APART if arguments.skip == 0 else ():
            out.mkdir()
            program = [sys.executable, "-P", "-m", "stn_infer.cli.main", *line.format(out=out).split()]
            plain = {**os.environ, **environment, "PYTHONPATH": root}
            code = subprocess.run(program, env=plain, capture_output=True, timeout=600, check=False).returncode
            counts[f"of their own, exit code {code}"] += 1
            if mark.exists():
                ran.append(f"in a process of its own: {line}")
                mark.unlink()
            shutil.rmtree(out)
        os.chdir(root)
    print(
        json.dumps(
            {"files": len(names), "commands": len(COMMANDS), "pairs": len(pairs), "ran": ran, "wrong": wrong, **counts}
        )
    )
    return 1 if ran or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
