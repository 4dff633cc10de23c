"""The table of the configurations is made from files of results, and names what has none."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from lightning_polystep import __version__

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("model_zoo", ROOT / "scripts" / "model_zoo.py")
assert SPEC is not None
assert SPEC.loader is not None
model_zoo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(model_zoo)


def left(folder, version, value, package=__version__, metric="test/accuracy"):
    record = {
        "packages": {"lightning-polystep": package},
        "test_metrics": {"test/loss": 0.5, metric: value},
        "epochs": 3,
        "processor_seconds": 12.3,
        "peak_memory_mib": 1234.5,
    }
    path = folder / f"version_{version}" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_row_has_the_figures_of_the_newest_run_of_this_version(tmp_path):
    left(tmp_path / "mnist_spiking", 0, 0.5)
    left(tmp_path / "mnist_spiking", 1, 0.9766)
    left(tmp_path / "mnist_spiking", 2, 0.99, package="0.0.1")
    cells = model_zoo.row(ROOT / "configs" / "mnist_spiking.yaml", tmp_path)
    assert cells[0] == "`mnist_spiking`"
    assert cells[1].startswith("A hard spiking network (784-128-10, T=15) learns MNIST by forward passes alone")
    assert cells[2:] == ["97.7 %", "3", "12", "1,234", "`--data.root path/to/data`"]


@pytest.mark.parametrize(
    ("name", "metric", "value", "shown"),
    [
        ("cartpole", "test/return", 499.6, "return 500"),
        ("maxsat_random", "test/satisfied", 0.98765, "98.77 % of the clauses"),
        ("hourly_staircase", "test/mse", 0.12345, "mean squared error 0.123"),
    ],
)
def test_other_figures_than_accuracy(tmp_path, name, metric, value, shown):
    left(tmp_path / name, 0, value, metric=metric)
    assert model_zoo.row(ROOT / "configs" / f"{name}.yaml", tmp_path)[2] == shown


def test_the_page_lists_every_configuration_once_as_the_script_writes_it(tmp_path):
    page = (ROOT / "docs" / "model_zoo.md").read_text("utf-8")
    _, begin, rest = page.partition(model_zoo.BEGIN)
    written, end, _ = rest.partition(model_zoo.END)
    assert begin
    assert end
    made = model_zoo.table(tmp_path)
    assert made.count("| not run |") == len(list((ROOT / "configs").glob("**/*.yaml")))
    names = [re.findall(r"^\| `(.+?)` \| (.+?) \|", text, re.MULTILINE) for text in (made, written)]
    assert names[0] == names[1]
