"""``make wheel``: what it refuses, and what it says of Pythons that are not there."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

from release import wheel
from tests.support.paths import ROOT

NAME = "stn_infer-1.2.3-py3-none-manylinux_2_28_x86_64.whl"


def a_wheel(folder: Path, name: str = NAME, without: str = "", more: tuple[str, ...] = ()) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member in (*wheel.CONTENTS, "stn_infer-1.2.3.dist-info/METADATA", *more):
            if member != without:
                archive.writestr(member, b"")
    return path


def test_a_whole_wheel_passes(tmp_path: Path) -> None:
    assert wheel.check_contents(a_wheel(tmp_path)) == len(wheel.CONTENTS) + 1
    both = "stn_infer-1.2.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
    assert wheel.check_contents(a_wheel(tmp_path, both)) == len(wheel.CONTENTS) + 1


@pytest.mark.parametrize(
    "name",
    [
        "stn_infer-1.2.3-py3-none-linux_x86_64.whl",
        "stn_infer-1.2.3-py3-none-any.whl",
        "stn_infer-1.2.3-cp311-cp311-manylinux_2_28_x86_64.whl",
    ],
)
def test_a_wheel_of_one_python_or_system_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(wheel.Failed, match=f"expected a wheel for every Python 3 on manylinux, got {name}"):
        wheel.check_contents(a_wheel(tmp_path, name))


@pytest.mark.parametrize("member", wheel.CONTENTS)
def test_a_missing_part_is_named(member: str, tmp_path: Path) -> None:
    with pytest.raises(wheel.Failed, match=f"lacks {member}"):
        wheel.check_contents(a_wheel(tmp_path, without=member))


@pytest.mark.parametrize("member", ["stn_infer.libs/libgomp-1.so", "tests/test_x.py", "stn_inferior/x.py"])
def test_what_is_not_of_the_package_is_refused(member: str, tmp_path: Path) -> None:
    with pytest.raises(wheel.Failed, match="which is not of this package"):
        wheel.check_contents(a_wheel(tmp_path, more=(member,)))


def test_the_workflows_call_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    files = [ROOT / ".ci" / "run", *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    called = {name for file in files for name in re.findall(r"\bmake ([a-z][a-z-]*)", file.read_text(encoding="utf-8"))}
    assert {"check", "test", "test-slow", "docs", "demo", "wheel"} <= called <= targets | {"targets"}


def test_what_the_images_copy_is_not_ignored() -> None:
    """Docker sends only what .dockerignore lets through, and a COPY of anything else fails."""
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]}
    assert copied <= sent and all((ROOT / name).exists() for name in sent)


def test_what_the_wheel_must_hold_is_in_the_tree() -> None:
    """The libraries are built; all else is a file of the checkout, the plugins' from another folder."""
    sources = [name for name in wheel.CONTENTS if not name.endswith(".so")]
    assert all((ROOT / name.replace("stn_infer/plugins/", "plugins/")).is_file() for name in sources)


def test_pythons_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "python9"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    found = wheel.find_pythons([sys.executable, "python3.99", str(broken)])
    assert found == [Path(sys.executable)]
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{name} was not found, so the wheel is not tried there" for name in ("python3.99", broken)]
    assert wheel.find_pythons([]) == []
    with pytest.raises(wheel.Failed, match=r"none of python3\.99 was found"):
        wheel.find_pythons(["python3.99"])


def test_a_command_has_its_output_its_environment_and_its_memory(tmp_path: Path) -> None:
    program = "import os; x = bytearray(50_000_000); print(os.getcwd(), os.environ['STN_X'])"
    run = wheel.execute([sys.executable, "-c", program], tmp_path, {"STN_X": "there"})
    assert run.output == f"{tmp_path.resolve()} there\n"
    assert run.memory > 50e6  # of this process too, which the system counts in before the command starts


def test_a_command_that_fails_is_told_with_its_end(tmp_path: Path) -> None:
    program = "import sys; print('\\n'.join(map(str, range(100)))); sys.exit(3)"
    with pytest.raises(wheel.Failed, match=r"failed \(exit code 3\):") as caught:
        wheel.execute([sys.executable, "-c", program], tmp_path)
    assert str(caught.value).endswith("\n  98\n  99") and "\n  84\n" not in str(caught.value)


def test_the_accuracy_is_read_from_the_demo() -> None:
    line = "973 of 1000 predictions are correct: 97.3 %"
    assert wheel.accuracy(f"wrote x\n{line}\n\ndone") == line
    with pytest.raises(wheel.Failed, match="says no accuracy"):
        wheel.accuracy("error: nothing")


def test_the_first_failure_ends_it_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["wheel.py", "--wheel", str(a_wheel(tmp_path, without=wheel.CONTENTS[0]))])
    with pytest.raises(SystemExit, match=f"error: {NAME} lacks {wheel.CONTENTS[0]}"):
        wheel.main()
