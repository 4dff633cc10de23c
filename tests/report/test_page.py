"""The page holds everything, is well-formed, and needs nothing from elsewhere."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from lightning_polystep.report.page import page
from lightning_polystep.report.run import read_run
from tests.report.runs import PNG, RESULTS, write_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Follows the tags, which have to close in order, and keeps texts by their tag, and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.loads, self.ids, self.classes = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.classes.append(attributes.get("class", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag):
        return [text for each, text in self.texts if each == tag]


def made(folder, **changes):
    text = page(read_run(write_run(folder / "runs" / "version_3", **changes)))
    reader = Reader(text)
    assert reader.open == []
    return text, reader


def test_every_section_is_there_with_what_it_is_about(tmp_path):
    _, reader = made(tmp_path)
    assert reader.of("h1") == ["runs / version_3"]
    assert reader.of("h2") == [
        "Curves",
        "Plan: how candidates were scored",
        "Where the time went",
        "Health of the layers",
        "Pictures",
        "Environment",
        "To repeat it",
    ]
    assert {"0.9694", "12,345", "583.5", "10.0", "1,234"} <= set(reader.of("b"))
    cells = reader.of("td")
    assert {"network.1", "128", "65", "outcome", "<none> & such", "2.14.1", "not installed", "ab" * 32} <= set(cells)
    assert "validation, data, the rest" in reader.of("text")  # 10 seconds without those of the verbs
    assert "6.00 s (60 %)" in reader.of("text")
    command, config = reader.of("pre")
    assert re.fullmatch(r"python -m lightning_polystep fit --config \S+version_3/config.yaml", command)
    assert config == "model:\n  width: <8>"
    assert "Always 0: PolyStep: skipped." in reader.of("p")


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    text, reader = made(tmp_path)
    assert [each for each in reader.loads if not each.startswith(("data:", "#"))] == []
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in reader.loads
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(reader.ids) == len(set(reader.ids))  # figures of one page do not take each other's parts


def test_a_layer_that_is_not_well_is_marked_with_the_cure(tmp_path):
    _, reader = made(tmp_path)
    assert "0.625" in reader.of("td")
    assert "number warn" in reader.classes
    assert any(text.startswith("network.2: most neurons never fire") for text in reader.of("p"))


def test_it_is_written_for_light_and_dark(tmp_path):
    text, _ = made(tmp_path)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in text.split("prefers-color-scheme: dark", 1))
    dark = {name: dark[name] for name in light}
    for colours in (light, dark):
        for name in colours.keys() - {"paper", "card"}:
            # WCAG asks 3 for lines of figures and 4.5 for text.
            least = 4.5 if name in ("ink", "warn") else 3.0
            assert contrast(colours[name], colours["card"]) >= least, (name, colours[name])


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_what_a_run_has_not_left_is_said(tmp_path):
    left = {"results.json": None, "config.yaml": None, "pictures/spikes.png": None, "metrics.csv": "epoch,step\n"}
    _, reader = made(tmp_path, **left)
    told = " ".join(reader.of("p"))
    for sentence in (
        "There is no results.json: the run did not end",
        "Nothing was logged: give the Trainer a CSVLogger",
        "No plan was written",
        "Nothing was logged of single layers",
        "None were drawn",
        "There is no config.yaml",
    ):
        assert sentence in told


def test_a_run_of_another_strategy_has_no_plan_and_no_verbs(tmp_path):
    other = {name: value for name, value in RESULTS.items() if name not in ("plan", "seconds_by_verb", "candidates")}
    _, reader = made(tmp_path, **{"results.json": json.dumps(other)})
    assert any(text.startswith("No plan was written") for text in reader.of("p"))
    assert "No times were written." in reader.of("p")
