"""Pages whose blocks continue one another: they run from top to bottom and print what stands below them."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "brevitas_to_finn": ("brevitas", "sklearn", "onnxoptimizer", "qonnx"),
    "snntorch_to_nir": ("snntorch", "nir", "nirtorch", "sklearn"),
}
BLOCKS = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d[\d,.]*")


def numbers(line):
    return [float(number.rstrip(".,").replace(",", "")) for number in NUMBER.findall(line)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # exporters warn of themselves
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_and_prints_what_it_shows(page, monkeypatch, tmp_path, capsys):
    for package in PAGES[page]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    blocks = BLOCKS.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    assert sum(bool(shown) for _, shown in blocks) >= 3
    for script, shown in blocks:
        exec(compile(script, f"{page}.md", "exec"), names)
        lines = shown.splitlines()
        printed = capsys.readouterr().out.splitlines()[-len(lines) :] if lines else []
        assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in lines]
        for line, told in zip(printed, lines, strict=True):
            # A run is rounded otherwise on another processor; counts of what was compared are not.
            assert numbers(line) == pytest.approx(numbers(told), abs=5 if "%" in line else 0)
