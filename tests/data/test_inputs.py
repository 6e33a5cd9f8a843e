from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from stn_infer.data.inputs import Inputs, Sample
from stn_infer.errors import InputError


def no_arrays(path: str) -> int | None:
    raise AssertionError(f"{path} is not an array file")


def names(*sources: str | Path, stdin: bytes = b"") -> list[str]:
    with Inputs(sources, no_arrays, io.BytesIO(stdin)) as inputs:
        return [sample.name for sample in inputs]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """b.png, a.JPG, notes.txt, .hidden.png and sub/c.png in the current folder."""
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.png", "sub/.git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_sorted_and_recursive_and_other_files_are_ignored(folder: Path) -> None:
    assert names(".") == ["./a.JPG", "./b.png", "./sub/c.png"]


def test_sources_keep_their_order_and_duplicates(folder: Path) -> None:
    assert names("sub", "b.png", "b.png", Path("sub/c.png")) == ["sub/c.png", "b.png", "b.png", "sub/c.png"]


def test_an_explicit_file_may_have_any_name(folder: Path) -> None:
    assert names("notes.txt", ".hidden.png") == ["notes.txt", ".hidden.png"]


def test_patterns(folder: Path) -> None:
    assert names("*.png") == ["b.png"]
    assert names("**/*.png") == ["b.png", "sub/c.png"]
    assert names("su*") == ["sub/c.png"]
    (folder / "x[1].png").touch()
    assert names("x[1].png") == ["x[1].png"], "a file that is there is no pattern"


def test_lists(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"sub/c.png\r\n\nmissing.png\nb.png")
    expected = ["sub/c.png", "missing.png", "b.png"]
    assert names("@list.txt") == expected
    assert names("-", stdin=(folder / "list.txt").read_bytes()) == expected
    assert names("a.JPG", "-", "b.png", stdin=b"sub\n") == ["a.JPG", "sub/c.png", "b.png"]


def test_a_file_whose_name_starts_with_at(folder: Path) -> None:
    (folder / "@home.png").touch()
    assert names("@home.png") == ["@home.png"]


def test_inputs_can_be_iterated_repeatedly_including_stdin(folder: Path) -> None:
    with Inputs(["-", "."], no_arrays, io.BytesIO(b"b.png\n")) as inputs:
        assert list(inputs) == list(inputs)
        survey = inputs.survey()
        assert (survey.samples, survey.images) == (4, True)
        assert len(list(inputs)) == 4


@pytest.mark.parametrize("kept", [32768, 0])
def test_changes_after_the_survey_do_not_change_the_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr("stn_infer.data.inputs._KEPT", kept)
    monkeypatch.setattr("stn_infer.data.inputs._CHUNK", 2)
    with Inputs(["."], no_arrays) as inputs:
        before = list(inputs)
        assert inputs.survey().samples == 3
        (folder / "aa.png").touch()
        (folder / "b.png").unlink()
        assert list(inputs) == list(inputs) == before


def test_links_are_followed_except_for_cycles(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again.png").symlink_to(folder / "b.png")
    assert names(".") == ["./a.JPG", "./again.png", "./b.png", "./sub/c.png"]


def test_dangling_links_are_failed_samples(folder: Path) -> None:
    (folder / "lost.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "loop").symlink_to("loop")
    (folder / "lost").symlink_to("gone")
    assert names(".") == ["./a.JPG", "./b.png", "./loop.png", "./lost.png", "./sub/c.png"]


def test_pipes_and_folders_with_image_suffixes(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    (folder / "dir.png").mkdir()
    (folder / "dir.png" / "e.png").touch()
    assert names(".") == ["./a.JPG", "./b.png", "./dir.png/e.png", "./pipe.png", "./sub/c.png"]


def test_the_fingerprint_depends_on_order_and_names(folder: Path) -> None:
    def fingerprint(*sources: str) -> str:
        return Inputs(sources, no_arrays).survey().fingerprint

    assert fingerprint("a.JPG", "b.png") == fingerprint("a.JPG", "b.png")
    assert fingerprint("a.JPG", "b.png") != fingerprint("b.png", "a.JPG")
    assert fingerprint("b.png") != fingerprint("b.png", "b.png")


def test_the_fingerprint_of_sizes_and_times_and_that_of_contents(folder: Path) -> None:
    def survey(contents: bool = False) -> tuple[str, str]:
        with Inputs(["."], no_arrays) as inputs:
            found = inputs.survey(contents)
        return found.stat_fingerprint, found.content_fingerprint

    image = folder / "b.png"
    image.write_bytes(b"one")
    os.utime(image, ns=(1, 1))
    first, first_content = survey(True)
    assert survey() == (first, "")
    os.utime(image, ns=(2, 2))
    later, same_content = survey(True)
    assert later != first and same_content == first_content
    image.write_bytes(b"two")
    os.utime(image, ns=(1, 1))
    assert survey(True)[0] == first and survey(True)[1] != first_content
    image.unlink()
    assert survey(True)[0] != first


def test_a_list_with_a_byte_order_mark(folder: Path) -> None:
    assert names("-", stdin=b"\xef\xbb\xbfb.png\na.JPG\n") == ["b.png", "a.JPG"]
    with pytest.raises(InputError, match="stdin is encoded in UTF-16; save it in UTF-8"):
        names("-", stdin="b.png\n".encode("utf-16"))


def test_array_files(folder: Path) -> None:
    for name in ("one.npy", "three.npz", "bad.npy"):
        (folder / name).touch()

    def count(path: str) -> int | None:
        if path == "bad.npy":
            raise InputError("bad.npy is bad")
        return {"one.npy": None, "three.npz": 3}[path]

    inputs = Inputs(["one.npy", "three.npz", "bad.npy"], count)
    assert list(inputs) == [
        Sample("one.npy", "one.npy"),
        Sample("three.npz[0]", "three.npz", 0),
        Sample("three.npz[1]", "three.npz", 1),
        Sample("three.npz[2]", "three.npz", 2),
        Sample("bad.npy", "bad.npy", error="bad.npy is bad"),
    ]
    assert not inputs.survey().images


def test_an_array_file_without_samples_is_reported(folder: Path) -> None:
    (folder / "none.npy").touch()
    (sample,) = Inputs(["none.npy"], lambda path: 0)
    assert sample.error == "none.npy: expected at least one sample, found none"


def test_missing_or_empty_sources_are_one_line(folder: Path) -> None:
    (folder / "empty").mkdir()
    cases: dict[tuple[str, ...], str] = {
        (): "no inputs given",
        ("none.png",): "no such file or folder: none.png",
        ("*.gif",): "no file matches",
        ("empty",): "no inputs in the folder empty",
        ("@none.txt",): "cannot read the list none.txt",
        ("-", "-"): "given twice",
        ("-",): "no inputs in -",
    }
    for sources, message in cases.items():
        with (
            pytest.raises(InputError, match=message) as caught,
            Inputs(sources, no_arrays, io.BytesIO()) as inputs,
        ):
            inputs.survey()
        assert "\n" not in str(caught.value)


def test_binary_data_is_not_a_list(folder: Path) -> None:
    with pytest.raises(InputError, match="not a list of paths"):
        names("-", stdin=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")


def test_names_that_are_not_utf8(folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (folder / odd).touch()
    assert odd in names("-", stdin=b"caf\xe9.png\n")
    assert Inputs([odd], no_arrays).survey().samples == 1


def test_files_of_folders_that_are_left_out_are_counted(tmp_path: Path) -> None:
    names = ("a.png", "b.AVIF", "c.tga", "notes.txt", "more.TXT", "README", "x.averylongsuffix", ".hidden.txt", "d.mp4")
    (tmp_path / "inner").mkdir()
    for name in (*names, "inner/e.txt", "inner/f.ico"):
        (tmp_path / name).write_bytes(b"x")
    with Inputs([tmp_path, tmp_path / "notes.txt"], lambda path: None) as inputs:
        for _ in range(2):
            survey = inputs.survey()
            assert dict(survey.left_out) == {"txt": 3, "": 2, "mp4": 1}, "a file that is named itself is an input"
            assert survey.samples == 5
