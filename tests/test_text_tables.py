from __future__ import annotations

import io

import pytest
from rich.console import Console

from stn_infer.text_tables import Table, fits, layout

TABLE = Table(
    headings=("name", "input", "error", "images", "description"),
    rows=[
        ("st-cnn-affine-rts", "1x42x42", "2.67", "10,000", "digits that are rotated, scaled and anywhere on a canvas"),
        ("tps", "1x28x28", "12.23", "9", "short"),
    ],
    numbers=frozenset((2, 3)),
    text=True,
    optional=("images", "input"),
)


def text(table: Table, width: int) -> list[str]:
    return ["".join(line) for line in layout(table, width)]


def test_beside_each_other_where_there_is_room() -> None:
    assert text(TABLE, 120) == [
        "name               input    error  images  description",
        "─" * 99,
        "st-cnn-affine-rts  1x42x42   2.67  10,000  digits that are rotated, scaled and anywhere on a canvas",
        "tps                1x28x28  12.23       9  short",
    ]
    assert text(TABLE, 75)[2:5] == [
        "st-cnn-affine-rts  1x42x42   2.67  10,000  digits that are rotated, scaled",
        "                                           and anywhere on a canvas",
        "tps                1x28x28  12.23       9  short",
    ]


def test_free_text_below_and_columns_left_out() -> None:
    assert text(TABLE, 44) == [
        "name               input    error  images",
        "─" * 41,
        "st-cnn-affine-rts  1x42x42   2.67  10,000",
        "    digits that are rotated, scaled and",
        "    anywhere on a canvas",
        "tps                1x28x28  12.23       9",
        "    short",
    ]
    narrow = text(TABLE, 34)
    assert narrow[0] == "name               input    error" and narrow[-2:] == [
        "left out to fit 34 columns:",
        "images; --json has all",
    ]


@pytest.mark.parametrize("width", range(24, 130))
def test_no_line_is_wider_and_nothing_is_cut(width: int) -> None:
    lines = text(TABLE, width)
    assert max(map(len, lines)) <= width
    for piece in ("2.67", "12.23", "short", "digits", "rotated,", "canvas"):
        assert any(piece in line for line in lines), piece


@pytest.mark.parametrize("width", [0, 1, 4, 15])
def test_a_terminal_of_a_few_columns_breaks_the_lines_itself(width: int) -> None:
    assert text(TABLE, width) == text(TABLE, 16)
    console = Console(file=io.StringIO(), width=max(width, 1))
    console.print(TABLE)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "".join(out.split()) == "".join("".join(text(TABLE, 16)).split())


def test_wide_cells_are_wrapped_at_last() -> None:
    table = Table(headings=("variant", "ms"), rows=[("benchmarks.peers.kornia_warps:homography_warp", "1.5")])
    assert text(table, 30) == [
        "variant                    ms",
        "─" * 30,
        "benchmarks.peers.kornia_w  1.5",
        "arps:homography_warp",
    ]
    assert fits(table, 60) and not fits(table, 30)


def test_sections_colors_and_hostile_names() -> None:
    rows = [("1", "passed"), ("8", "a\x1b[2J[red]b")]
    table = Table(headings=("batch", "\x1bstate"), rows=rows, sections=True, colors={"passed": "green"})
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=60)
    console.print(table)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32mpassed\x1b[0m" in out and "a\\x1b[2J[red]b" in out and "\\x1bstate" in out
    assert text(table, 60)[3] == ""
