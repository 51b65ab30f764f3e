"""What is held out, on made-up drawings: the real ones need a download."""

from __future__ import annotations

from asdm_cli.pocket.art import Drawing
from asdm_cli.pocket.split import NOVEL_LABEL, NOVEL_STYLE, split

STYLES = ("noto", "blob", "twemoji", "fluent", "flat", "emojione")


def made_up(labels: int = 600) -> list[Drawing]:
    return [Drawing(f"thing {i}", style, "objects", "") for i in range(labels) for style in STYLES[: 1 + i % 6]]


def test_every_drawing_is_on_exactly_one_side():
    drawings = made_up()
    sides = split(drawings)
    together = [drawing for side in sides.values() for drawing in side]
    assert len(together) == len(drawings) > 2000
    assert {(d.label, d.style) for d in together} == {(d.label, d.style) for d in drawings}


def test_novel_labels_are_unknown_and_novel_styles_are_known():
    sides = split(made_up())
    known = {drawing.label for drawing in sides["train"]}
    assert len(sides[NOVEL_LABEL]) > 5
    assert len(sides[NOVEL_STYLE]) > 100
    assert not known & {drawing.label for drawing in sides[NOVEL_LABEL]}
    assert {drawing.label for drawing in sides[NOVEL_STYLE]} <= known


def test_twins_of_one_drawing_stay_together():
    sides = split(made_up())
    side_of = {(d.label, d.style): name for name, side in sides.items() for d in side}
    pairs = [label for label, style in side_of if style == "flat"]
    assert len(pairs) > 100
    assert all(side_of[label, "fluent"] == side_of[label, "flat"] for label in pairs)


def test_the_split_does_not_depend_on_order():
    drawings = made_up(200)
    forward, backward = split(drawings), split(drawings[::-1])
    assert {n: {d.caption for d in s} for n, s in forward.items()} == {
        n: {d.caption for d in s} for n, s in backward.items()
    }
