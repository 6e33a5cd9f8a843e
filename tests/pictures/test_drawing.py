"""Pictures, looked at by their pixels: images fit their panels, and lines are where the model samples."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stn_infer.pictures.drawing import draw
from stn_infer.pictures.look import Look, WarpView
from stn_infer.pictures.panels import panels_of
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess

ORANGE, BLUE = (255, 140, 26), (46, 166, 255)
Pixels = NDArray[np.int64]


def pixels(looks: list[Look]) -> Pixels:
    """[H, W, 4]."""
    with Image.open(io.BytesIO(draw(looks))) as picture:
        return np.asarray(picture.convert("RGBA"), np.int64)


def near(picture: Pixels, color: tuple[int, ...], tolerance: int = 12) -> NDArray[np.bool_]:
    """Where the picture is opaque and has this color."""
    same: NDArray[np.bool_] = (np.abs(picture[..., :3] - color).max(axis=-1) <= tolerance) & (picture[..., 3] > 250)
    return same


def bounds(where: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is true; the last two are exclusive."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def grid(theta: list[list[float]], size: tuple[int, int], source: tuple[int, int]) -> NDArray[np.float64]:
    """Points [H, W, 2] in pixels of an image of ``source`` (H, W) for theta [2 or 3, 3]."""
    height, width = size
    x, y = np.meshgrid((2 * np.arange(width) + 1) / width - 1, (2 * np.arange(height) + 1) / height - 1)
    across = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.array(theta).T
    flat = across[..., :2] / across[..., 2:] if len(theta) == 3 else across
    found: NDArray[np.float64] = ((flat + 1) * np.array(source[::-1]) - 1) / 2
    return found


def look(source: tuple[int, int], *thetas: list[list[float]], level: float = 0.5, truth: str | None = None) -> Look:
    """A flat gray image of ``source`` (H, W) with one black pixel and one white, regions of it, and dark results."""
    image, dark = np.full((1, *source), level, np.float32), np.full((1, 16, 16), 0.25, np.float32)
    image[0, 0, 0], image[0, 0, 1] = 0, 1
    warps = [WarpView(image, grid(theta, (16, 16), source), dark, len(theta) == 2, tensor="x") for theta in thetas]
    return Look("image.png", "7", tuple(warps), truth=truth)


SMALL = [[0.4, 0.1, 0.2], [-0.1, 0.3, -0.1]]


@pytest.mark.parametrize(
    "source",
    [(30, 120), (120, 40), *(pytest.param(size, marks=pytest.mark.slow) for size in ((40, 40), (300, 400), (20, 300)))],
)
@pytest.mark.parametrize("theta", [SMALL, [[0.9, 0.0, 0.4], [0.0, 0.9, -0.4]]])
def test_an_image_fits_its_panel_and_the_rest_is_transparent(source: tuple[int, int], theta: list[list[float]]) -> None:
    """The outline of the second region leaves the image, which does not add a bar to it."""
    picture = pixels([look(source, theta)])
    left, top, right, bottom = bounds(near(picture, (128, 128, 128), 2))
    assert abs((right - left) / (bottom - top) - source[1] / source[0]) < 0.06 * source[1] / source[0]
    outside = picture.copy()
    outside[int(top) - 2 : int(bottom) + 2, int(left) - 2 : int(right) + 2, 3] = 0
    flat = (outside[..., 3] > 250) & (np.ptp(outside[..., :3], axis=-1) == 0)
    columns = flat[int(top) : int(bottom)].mean(axis=0)
    assert columns.max() < 0.5, "a bar beside the image"
    assert not near(picture, (217, 217, 217), 1).any()
    assert (picture[0, :, 3] == 0).all() and (picture[:, 0, 3] == 0).all()


@pytest.mark.parametrize(
    ("theta", "source"),
    [
        (SMALL, (40, 40)),
        (SMALL, (60, 90)),
        ([[0.5, 0.2, 0.1], [0.1, 0.4, -0.2], [0.3, 0.2, 1.0]], (64, 48)),
        ([[1.05, 0.0, 0.1], [0.0, 0.5, 0.0]], (40, 40)),
    ],
)
def test_the_outline_is_where_theta_says_to_half_a_pixel(theta: list[list[float]], source: tuple[int, int]) -> None:
    picture = pixels([look(source, theta)])
    left, top, right, _ = bounds(near(picture, (128, 128, 128), 2))
    scale = (right - left) / source[1]
    found = bounds(near(picture, ORANGE, 60))
    points = grid(theta, (16, 16), source).reshape(-1, 2)
    expected = [*(points.min(axis=0) + 0.5) * scale, *(points.max(axis=0) + 0.5) * scale]
    width = 3.0  # of half a line and half the dot at the first corner, in pixels of the picture
    for edge, wanted, start in zip(found, expected, (left, top, left, top), strict=True):
        assert abs(edge - start - wanted) <= 0.5 * scale + width


def test_quotients_have_lines_inside_and_affine_maps_have_none() -> None:
    projective = [[0.6, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.3, 1.0]]
    inside = []
    for theta in (projective, projective[:2]):
        picture = pixels([look((40, 40), theta)])
        left, top, right, bottom = map(int, bounds(near(picture, (128, 128, 128), 2)))
        across, down = (right - left) // 4, (bottom - top) // 4
        middle = picture[top + down : bottom - down, left + across : right - across]
        inside.append(near(middle, ORANGE, 60).sum())
    assert inside[0] > 500 and inside[1] == 0
    (panel, _) = panels_of(look((40, 40), projective).warps)
    assert len(panel.regions[0].mesh) == 12


def test_what_is_behind_the_camera_is_drawn_lightly_and_nothing_joins_the_two_sides() -> None:
    theta = np.array([[0.5, 0.0, 0.0], [0.0, 0.3, 0.1], [0.0, -1.6, 1.0]])
    y = (2 * np.arange(16) + 1) / 16 - 1
    w = np.repeat((theta[2, 1] * y + 1)[:, None], 16, axis=1)
    view = replace(look((40, 40), theta.tolist()).warps[0], w=w)
    (panel, _) = panels_of([view])
    (region,) = panel.regions
    front = view.points[w > 0][:, 1].min()
    assert (w < 0).any() and region.faint
    for line in (*region.outline, *region.mesh):
        assert line[:, 1].min() >= front - 1e-9
    for line in region.faint:
        assert line[:, 1].max() <= view.points[w < 0][:, 1].max() + 1e-9
    mirrored = replace(view, w=-w)  # the same points, the other way around
    (other, _) = panels_of([mirrored])
    assert len(other.regions[0].faint) == len(region.faint)


def test_samplers_of_one_image_share_it_and_frames_have_the_outlines_colors() -> None:
    two = look((40, 40), [[0.4, 0, -0.5], [0, 0.4, -0.4]], [[0.4, 0, 0.5], [0, 0.4, 0.4]])
    panels = panels_of(two.warps)
    assert [(panel.label, panel.color) for panel in panels] == [
        ("input", ""),
        ("warped 1", "#ff8c1a"),
        ("warped 2", "#2ea6ff"),
    ]
    assert [region.color for region in panels[0].regions] == ["#ff8c1a", "#2ea6ff"]
    picture = pixels([two])
    third = picture.shape[0] // 3
    orange, blue = near(picture, ORANGE, 40), near(picture, BLUE, 40)
    middle = np.argmax(orange.sum(axis=0))  # the left edge of the first frame
    first, second = np.flatnonzero(orange.sum(axis=1) > 100), np.flatnonzero(blue.sum(axis=1) > 100)
    assert orange[:third].any() and blue[:third].any(), "outlines in the input"
    assert first.max() < second.max() and orange[third : 2 * third, middle].mean() > 0.5
    assert blue[2 * third :].sum() > 4 * orange[2 * third :].sum()
    other = replace(two.warps[1], tensor="y")
    assert [panel.label for panel in panels_of([two.warps[0], other])] == ["input 1", "warped 1", "input 2", "warped 2"]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_lines_are_seen_on_black_and_on_white(level: float) -> None:
    picture = pixels([look((40, 40), SMALL, level=level)])
    assert near(picture, ORANGE, 20).sum() > 300
    dark = near(picture[: picture.shape[0] // 2], (150, 150, 150), 80).sum()
    assert dark > 300 or level == 0.0, "a halo on white"


def test_colors_are_those_of_the_picture() -> None:
    """Normalized values are drawn as the pixels that they were made of, in RGB, arrays of any values by their range."""
    rule = Preprocess.parse("imagenet,bgr")
    image = np.zeros((3, 40, 40), np.uint8)
    image[2] = 200
    image[1] = 100  # BGR: orange
    values = normalize(image[None], rule)[0]
    warp = WarpView(values, grid(SMALL, (16, 16), (40, 40)), values[:, :16, :16], True, rule=rule)
    (panel, warped) = panels_of([warp])
    np.testing.assert_allclose(panel.image, np.broadcast_to(np.array([200, 100, 0]) / 255, (40, 40, 3)))
    np.testing.assert_allclose(warped.image[0, 0], np.array([200, 100, 0]) / 255)
    scaled = replace(warp, source=values * 9, warped=values[:, :16, :16] * 3)
    (panel, warped) = panels_of([scaled])
    assert (panel.image.min(), panel.image.max()) == (0, 1)
    assert 0 < warped.image.min() < warped.image.max() < 1


def text_of(looks: list[Look]) -> str:
    with mpl.rc_context({"svg.fonttype": "none"}):
        return draw(looks, ".svg").decode()


def test_right_and_wrong_are_marked_and_an_error_is_a_sentence_in_a_panel() -> None:
    good = [look((40, 40), SMALL, truth=truth) for truth in (None, "7", "3")]
    broken = Look("b.png", "", (), error="b.png is not an image that Pillow can read", truth="3")
    text = text_of([*good, broken])
    assert text.count("\N{CHECK MARK} 7") == 1 and text.count("\N{BALLOT X} 7") == 1 and text.count("truth: 3") == 1
    assert "not an image" in text and "b.png" in text
    picture = pixels([good[0], broken])
    half = picture.shape[1] // 2
    red = near(picture, (217, 83, 79), 12)
    assert red[:, half:].sum() > 50 and not red[:, :half].any()
    assert near(picture[:, :half], (128, 128, 128), 2).sum() > 10000
    assert pixels([broken, good[0]]).shape == picture.shape


def test_few_samples_are_drawn_large() -> None:
    widths = [pixels([look((40, 40), SMALL)] * count).shape[1] for count in (1, 4)]
    assert widths[0] > 350 and 1300 < widths[1] < 2 * widths[0] * 2


def test_names_that_the_font_lacks_are_no_warnings() -> None:
    """A warning is an error here; names of wide characters are cut to the column."""
    name = "\N{CJK UNIFIED IDEOGRAPH-6570}" * 60 + ".png"
    picture = pixels([replace(look((40, 40), SMALL), name=name)])
    assert not (picture[:, -4:, 3] > 0).any() and not (picture[:30, :20, 3] > 0).any()
