"""The notebooks run from top to bottom, beat their controls, and print what the committed copies show."""

import getpass
import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = {
    "black_box": ["matplotlib"],
    "brevitas_network": ["brevitas", "sklearn"],
    "spiking_digits": ["matplotlib", "sklearn"],
}
SMALLER_IS_BETTER = {"black_box"}
NUMBER = r"\d+(?:\.\d+)?"


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def last_line(notebook):
    [output] = [each for each in code_cells(notebook)[-1]["outputs"] if each["output_type"] == "stream"]
    return "".join(output["text"]).splitlines()[-1]


def test_every_notebook_says_what_it_needs():
    assert [path.stem for path in NOTEBOOKS] == sorted(NEEDED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_copy_is_a_whole_run_of_no_particular_machine(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} <= {"stream", "display_data"}
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)\b|site-packages", text)
    assert f"/{getpass.getuser()}/" not in text
    assert len(text) < 200_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nbclient") is None or find_spec("ipykernel") is None, reason="needs nbclient, ipykernel")
@pytest.mark.filterwarnings("default")  # Jupyter's own are not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_prints_what_the_copy_shows_and_beats_the_controls(path, tmp_path, monkeypatch):
    for package in NEEDED[path.stem]:
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # as the copies were run
    run = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))["run"]
    printed, shown = last_line(run(path, tmp_path)), last_line(json.loads(path.read_text(encoding="utf-8")))
    assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", shown)
    ours, *controls = map(float, re.findall(NUMBER, printed))
    theirs, *others = map(float, re.findall(NUMBER, shown))
    # Controls train nothing; a run is rounded otherwise on another processor, and ends a few steps beside.
    assert controls == pytest.approx(others, rel=0.02)
    assert ours == pytest.approx(theirs, abs=0.1 * max(*controls, theirs))
    assert all(3 * ours < control if path.stem in SMALLER_IS_BETTER else ours > 3 * control for control in controls)
