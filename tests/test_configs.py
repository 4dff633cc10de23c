"""Every configuration that ships trains: a few real steps, validation, a checkpoint and a test."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_polystep.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = sorted((REPOSITORY / "configs").glob("**/*.yaml"))

# What else makes a test of a slow configuration short.
FEWER = {
    "associative_recall.yaml": ["--data.batch_size=32", "--trainer.strategy.init_args.max_candidates=200"],
    "mnist_conv_spiking.yaml": ["--data.batch_size=8"],
}

# Where it is the point of the configuration.
TIERS = {"mnist_spiking.yaml": ["outcome", "outcome"], "mnist_events.yaml": ["incremental", "outcome"]}


def ids(path):
    return path.relative_to(REPOSITORY / "configs").as_posix()


def test_there_are_configs():
    assert {"digits_spiking.yaml", "mnist_spiking.yaml", "mnist_int8.yaml", "mnist_tfc.yaml"} <= {
        ids(path) for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_a_few_real_steps(path, tmp_path, request, monkeypatch):
    monkeypatch.chdir(tmp_path)  # configs log into folders relative to where they are run
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    arguments = ["fit", "--config", str(path)]
    if "root" in settings["data"]["init_args"]:
        # A smaller batch: the cost of a step is the configuration's whole point, and nothing to wait for in a test.
        arguments += ["--data.root", str(request.getfixturevalue("data_root")), "--data.batch_size=32"]
    arguments += FEWER.get(ids(path), [])
    arguments += [
        "--trainer.max_steps=2",
        "--trainer.limit_train_batches=2",
        "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.num_sanity_val_steps=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    cli = main(arguments)
    record = json.loads((Path(cli.trainer.log_dir) / "results.json").read_text(encoding="utf-8"))
    assert record["steps"] == 2
    assert record["seed"] == settings["seed_everything"]
    assert record["candidates"] > 0
    assert record["skipped_batches"] == 0
    assert record["tested"] == "best checkpoint"
    assert "test/accuracy" in record["test_metrics"]
    assert Path(cli.trainer.log_dir).resolve().is_relative_to(tmp_path), "a config must log below the current folder"
    # Nothing that ships may run on the slowest tier.
    tiers = [row["tier"] for row in record["plan"]]
    assert "loop" not in tiers
    assert tiers == TIERS.get(ids(path), tiers)


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_the_head_says_how_to_run_it(path):
    head = path.read_text(encoding="utf-8").splitlines()[:5]
    assert any(f"--config configs/{ids(path)}" in line for line in head if line.startswith("#"))
