"""The scripts of docs/no_gradient.md run as printed, beat their controls, and print what the page shows."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "no_gradient.md"
TEXT = PAGE.read_text(encoding="utf-8")
CASES = re.findall(
    r"^## (.*?)\n(?:(?!^## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, flags=re.DOTALL | re.MULTILINE
)
NUMBER = r"\d+(?:\.\d+)?"
HIGHER_IS_BETTER = {"A layer of numpy", "F1"}


def test_every_script_has_its_output():
    assert len(CASES) == TEXT.count("```python\n") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("title", "script", "shown"), CASES, ids=[title for title, *_ in CASES])
def test_it_prints_what_the_page_shows_and_beats_the_controls(title, script, shown, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(script, f"{PAGE}: {title}", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()[-1]
    words, told = (re.sub(NUMBER, "#", text) for text in (printed, shown.strip()))
    assert words == told
    ours, *controls = map(float, re.findall(NUMBER, printed.replace("F1", "").replace("always 0000", "")))
    theirs, *others = map(float, re.findall(NUMBER, shown.replace("F1", "").replace("always 0000", "")))
    # Controls train nothing; a run is rounded otherwise on another processor, and ends a few steps beside.
    assert controls == pytest.approx(others, rel=0.02)
    assert ours == pytest.approx(theirs, abs=0.1 * max(*controls, theirs))
    assert all(ours > 1.3 * control if title in HIGHER_IS_BETTER else 1.3 * ours < control for control in controls)
