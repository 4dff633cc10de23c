import pytest
import torch

from benchmarks.forecasts import daily_persistence, regression
from datamodules import HourlySeries
from datamodules.transformer import transformer_series
from tests.datamodules.test_hourly import write

pytestmark = pytest.mark.filterwarnings("ignore:Seed")
NAMES = ["ours", "Adam, straight-through", "linear regression", "daily persistence", "persistence"]


def check(results):
    assert list(results)[:5] == NAMES
    for name in NAMES:
        assert 0 < results[name]["test"] < 10
    assert [run["seed"] for run in results["ours"]["runs"]] == [0, 1]


def test_all_forecasts_are_compared(quick, tmp_path):
    check(quick("forecasts", "--seeds", 2, "--plot", tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_a_table_with_other_columns_fits_too(quick, tmp_path):
    series = transformer_series(14_400)[:, [0, 2]]
    results = quick("forecasts", "--seeds", 2, "--path", write(tmp_path / "two.csv", series, heading="date,load,OT"))
    check(results)
    assert results["data"] == "two.csv"


def test_the_controls_are_right_where_the_answer_is_known():
    data = HourlySeries(lookback=30, horizon=26, train_hours=600, val_hours=200, test_hours=200)
    data.setup()
    hours = torch.arange(1000, dtype=torch.float64)
    daily = torch.sin(2 * torch.pi * hours / 24)[:, None]
    ends = [600, 800, 1000]
    for name, start, end in zip(("train_set", "val_set", "test_set"), [30, *ends], ends, strict=False):
        setattr(data, name, data._windows(daily, start, end))
    assert daily_persistence(data) < 1e-6
    assert regression(data) < 1e-4
    assert float(data.test_set.labels.square().mean()) > 0.5
