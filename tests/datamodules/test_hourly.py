"""Windows of a series: what they hold, that no target is seen early, and files."""

import pytest
import torch

from datamodules import HourlySeries
from datamodules.hourly import read_series
from datamodules.transformer import transformer_series

HOURS = {"train_hours": 300, "val_hours": 100, "test_hours": 80}


def data(**options):
    made = HourlySeries(**{"lookback": 10, "horizon": 4, **HOURS, **options})
    made.setup()
    return made


def write(path, series, heading="date,a,b,OT"):
    rows = [f"2016-07-01 00:00:00,{','.join(map(repr, row))}" for row in series.tolist()]
    path.write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
    return path


def test_windows_are_the_series_relative_to_their_last_hour():
    series = transformer_series(480)
    known = series[:300]
    series = (series - known.mean(0)) / known.std(0, correction=0)
    for part, start in (("train_set", 10), ("val_set", 300), ("test_set", 400)):
        windows, ahead = getattr(data(), part)[5]
        now = start + 5  # the first hour ahead
        last = series[now - 1]
        torch.testing.assert_close(windows, (series[now - 10 : now] - last).float())
        torch.testing.assert_close(ahead, (series[now : now + 4, -1] - last[-1]).float())


def test_sets_have_every_window_and_share_no_target():
    made = data()
    assert [len(part) for part in (made.train_set, made.val_set, made.test_set)] == [287, 97, 77]


def test_later_hours_do_not_change_what_training_sees(tmp_path):
    series = transformer_series(480)
    first = data(path=write(tmp_path / "a.csv", series))
    series[300:] += 7.0
    second = data(path=write(tmp_path / "b.csv", series))
    assert torch.equal(first.train_set.images, second.train_set.images)
    assert torch.equal(first.train_set.labels, second.train_set.labels)
    assert not torch.equal(first.val_set.images, second.val_set.images)


def test_a_file_is_read_as_it_was_written(tmp_path):
    series = transformer_series(480)
    path = write(tmp_path / "series.csv", series)
    assert torch.equal(read_series(path), series)
    assert torch.equal(data(path=path).test_set.images, data().test_set.images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no series"),
        ("date,OT\n", "holds no series"),
        ("date\n2016\n", "holds no series"),
        ("date,OT\nnow,warm\n", "line 2: could not convert string to float: 'warm'"),
        ("date,OT\nnow,1.0\nthen,nan\n", "line 3: expected a time and 1 finite numbers"),
        ("date,a,OT\nnow,1.0\n", "line 2: expected a time and 2 finite numbers"),
        ("date,OT\nnow,1.0\n", "has 1 hours, and the three sets need 480"),
        ("date,OT\n" + "now,1.0\n" * 480, "is constant in the training hours"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "series.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        data(path=path)


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ETTh1\.csv not found: .*leave it out for the simulated series"):
        data(path=tmp_path / "ETTh1.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookback": 0}, "lookback must be at least 1 hour, got 0"),
        ({"horizon": -1}, "horizon must be at least 1 hour"),
        ({"train_hours": 13}, "train_hours must be at least 14 for one window, got 13"),
        ({"val_hours": 3}, "val_hours must be at least 4"),
    ],
)
def test_hours_without_a_window_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data(**options)
