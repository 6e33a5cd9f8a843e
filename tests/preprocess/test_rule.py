"""A rule's fields, its text, and what a change of color does to it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stn_infer.errors import UsageError
from stn_infer.preprocess.rule import COLORS, INTERPOLATIONS, RESIZES, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("imagenet", Preprocess("rgb", mean=MEAN, std=STD)),
        ("imagenet,size=224", Preprocess("rgb", (224, 224), mean=MEAN, std=STD)),
        ("imagenet,bgr", Preprocess("bgr", mean=MEAN[::-1], std=STD[::-1])),
        ("rgb,mean=0.485,0.456,0.406,std=0.229,0.224,0.225", Preprocess("rgb", mean=MEAN, std=STD)),
        ("rgb, mean = 0.485:0.456:0.406, std=2", Preprocess("rgb", mean=MEAN, std=(2.0,))),
        ("-1..1", Preprocess(mean=(0.5,), std=(0.5,))),
        ("imagenet,0..1", Preprocess("rgb")),
        ("rgb,0..255", Preprocess("rgb", scale=1.0)),
        (
            "rgb,size=256,resize=shortest,crop=224x200,interpolation=bicubic",
            Preprocess("rgb", (256, 256), resize="shortest", crop=(224, 200), interpolation="bicubic"),
        ),
        (
            "size=8x9,resize=longest,pad=gray,background=#0102ff,exif=ignore,gamma=2.2",
            Preprocess(
                size=(8, 9), resize="longest", pad=(128, 128, 128), background=(1, 2, 255), exif="ignore", gamma=2.2
            ),
        ),
        ("background=1:2:3,pad=white", Preprocess(background=(1, 2, 3), pad=(255, 255, 255))),
    ],
)
def test_parse(text: str, rule: Preprocess) -> None:
    assert Preprocess.parse(text) == rule
    assert Preprocess.parse(rule.describe()) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resize=crop", "resize is 'stretch' or 'shortest' or 'longest', not 'crop'"),
        ("resize=shortest", "needs a size"),
        ("interpolation=linear", "interpolation is 'nearest'"),
        ("exif=yes", "exif is 'apply' or 'ignore'"),
        ("background=blue", "is malformed"),
        ("pad=none", "pad is a color"),
        ("pad=#0102", "pad is a color"),
        ("pad=300:0:0", "pad is a color"),
        ("crop=0", "both at least 1"),
        ("gamma=0", "gamma is above 0"),
        ("gamma=2,scale=-1", "gamma is above 0"),
        ("imagenets", "or a preset: imagenet"),
        ("0.5", "unknown preprocess key '0.5'"),
        ("size=3,4", "unknown preprocess key '4'"),
        ("imagenet,gray", "mean has 3 values; gray takes 1"),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Preprocess.parse(text)
    assert "\n" not in str(caught.value)


def test_a_change_of_color_keeps_what_it_can() -> None:
    rule = Preprocess("rgb", mean=(1.0, 2.0, 3.0), std=(0.5,), scale=1.0)
    assert rule.updated("bgr") == Preprocess("bgr", mean=(3.0, 2.0, 1.0), std=(0.5,), scale=1.0)
    assert rule.updated("gray") == Preprocess("gray", std=(0.5,), scale=1.0)
    assert rule.updated("rgb") == rule
    assert rule.updated("bgr,mean=1,2,3").mean == (1.0, 2.0, 3.0)


def test_the_size_of_an_input() -> None:
    assert Preprocess().output_size is None
    assert Preprocess(size=(3, 4)).output_size == Preprocess(size=(3, 4), resize="longest").output_size == (3, 4)
    rule = Preprocess(size=(3, 4), resize="shortest")
    assert rule.output_size is None and rule.updated("crop=2x3").output_size == (2, 3)
    assert rule.updated("crop=2x3").unsized() == Preprocess()


NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)
AREAS = st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999))
HUES = st.tuples(*[st.integers(0, 255)] * 3)


@settings(max_examples=60, deadline=None)
@example(rule=Preprocess(scale=2.0**-24))
@example(rule=Preprocess(scale=-1 / 255, mean=(1 / 3,), std=(-1e-30,)))
@given(
    rule=st.builds(
        Preprocess,
        color=st.sampled_from(COLORS),
        size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
        scale=st.floats(1e-9, 1e9),
        mean=st.tuples(NUMBERS),
        std=st.tuples(NUMBERS.filter(bool)),
        resize=st.sampled_from(RESIZES),
        crop=AREAS,
        interpolation=st.sampled_from(INTERPOLATIONS),
        gamma=st.floats(0.1, 10),
        exif=st.sampled_from(("apply", "ignore")),
        background=st.none() | HUES,
        pad=HUES,
    )
)
def test_text_of_a_rule_is_the_rule(rule: Preprocess) -> None:
    assert Preprocess.parse(rule.describe()) == rule
