import os

import pytest

from lightning_polystep.report import ReportError
from lightning_polystep.report.run import read_run
from tests.report.runs import PNG, RESULTS, write_run


def test_all_that_a_run_leaves_is_read(tmp_path):
    run = read_run(write_run(tmp_path))
    assert run.results == RESULTS
    assert run.series["train/loss"].steps == [1, 3]
    assert run.series["train/loss"].values == [2.5, 1.5]
    assert run.series["lr-PolyStep"].steps == [0]
    assert "epoch" not in run.series
    assert run.pictures == {"spikes": PNG}
    assert "width" in run.config


def test_what_is_missing_is_empty(tmp_path):
    files = ("results.json", "config.yaml", "pictures/spikes.png")
    run = read_run(write_run(tmp_path, **dict.fromkeys(files)))
    assert (run.results, run.config, run.pictures) == ({}, "", {})


def test_the_newest_version_of_a_folder_of_runs(tmp_path):
    for age, version in enumerate(("version_0", "version_10", "version_9")):
        os.utime(write_run(tmp_path / version), (1000 - age, 1000 - age))
    assert read_run(tmp_path).folder.name == "version_0"


def test_event_files_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    with SummaryWriter(tmp_path) as writer:
        for step in range(3):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
            writer.add_scalar("epoch", 0, step)
    series = read_run(tmp_path).series
    assert list(series) == ["train/loss"]
    assert series["train/loss"].steps == [0, 1, 2]
    assert series["train/loss"].values == pytest.approx([1, 0.5, 1 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results.json": "{"}, "is no JSON"),
        ({"results.json": "[1]"}, "holds no figures by name"),
        ({"metrics.csv": "epoch,step,loss\n0,1,high\n"}, "line 2, is not what CSVLogger writes"),
        ({"metrics.csv": "epoch,loss\n0,1\n"}, "line 2, is not what CSVLogger writes"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, changes, message):
    with pytest.raises(ReportError, match=message):
        read_run(write_run(tmp_path, **changes))


def test_a_folder_without_a_run_says_which_one_to_give(tmp_path):
    with pytest.raises(ReportError, match=r"holds no results.json, .* which its last line names"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="There is no folder"):
        read_run(tmp_path / "none")
