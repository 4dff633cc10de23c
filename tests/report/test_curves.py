from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from lightning_polystep.report.curves import VARIABLES, bars, curve, groups
from lightning_polystep.report.run import Series

ONE = Series([1, 2], [0.5, 0.25])


def words(svg):
    return [e.text.strip() for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text") and e.text]


def test_stages_of_a_figure_share_a_picture_and_come_first():
    names = ["polystep/flat_rows", "val/loss", "train/loss", "train_acc", "val_acc", "lr-PolyStep", "val/spike_rate/0"]
    names += ["polystep/flip_rate/0", "polystep/flip_rate/2"]
    made = groups(dict.fromkeys(names, ONE))
    assert list(made) == ["acc", "loss", "PolyStep: flat rows", "PolyStep: flip rate", "lr-PolyStep"]
    assert {title: list(lines) for title, lines in made.items()} == {
        "acc": ["train", "val"],
        "loss": ["train", "val"],
        "PolyStep: flat rows": [""],
        "PolyStep: flip rate": ["0", "2"],
        "lr-PolyStep": [""],
    }


def test_a_curve_names_its_lines_in_the_colours_of_the_page():
    text = curve("loss", {"train": ONE, "val": ONE})
    assert {"loss", "train", "val", "step"} <= set(words(text))
    assert "var(--c0)" in text
    assert "var(--c1)" in text
    assert not [colour for colour, _ in VARIABLES if colour in text]


def test_lines_beyond_six_are_counted():
    text = curve("flips", {str(place): ONE for place in range(8)})
    assert "flips (2 more not drawn)" in words(text)


def test_bars_say_seconds_and_shares():
    assert {"score", "3.00 s (75 %)", "1.00 s (25 %)"} <= set(words(bars("time", {"observe": 1.0, "score": 3.0})))
