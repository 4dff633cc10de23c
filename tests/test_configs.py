"""Every configuration that ships trains, and its audit finds no gradient but where one is known to be."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_polystep.cli import main
from tests.helpers.mnist_files import write_mnist

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = sorted((REPOSITORY / "configs").glob("**/*.yaml"))

# What else makes a test of a slow configuration short.
FEWER = {
    "lunar_lander.yaml": ["--data.batch_size=1", "--data.val_episodes=2", "--data.test_episodes=2"],
    "associative_recall.yaml": ["--data.batch_size=32", "--trainer.strategy.init_args.max_candidates=200"],
    "fashion_conv_spiking.yaml": ["--data.batch_size=8"],
    "fashion_residual.yaml": ["--data.batch_size=8", "--model.network.init_args.channels=4"],
    "mnist_conv_int8.yaml": ["--data.batch_size=8"],
    "mnist_conv_spiking.yaml": ["--data.batch_size=8"],
    **{
        f"paper/{name}.yaml": ["--optimizer.init_args.rank=8"]
        for name in ("attention", "int8", "moe", "spiking", "staircase")
    },
}

# Where it is the point of the configuration.
TIERS = {
    "acrobot.yaml": ["evaluate_many"],
    "cartpole.yaml": ["evaluate_many"],
    "mnist_events.yaml": ["incremental", "outcome"],
    "mnist_spiking.yaml": ["outcome", "outcome"],
    "lunar_lander.yaml": ["evaluate_many"],
    "mountain_car.yaml": ["evaluate_many"],
    "pendulum.yaml": ["evaluate_many"],
    "paper/cartpole.yaml": ["evaluate_many", "evaluate_many"],
}

# What of the extras it needs.
NEEDS = {"lunar_lander.yaml": ("gymnasium", "Box2D")}

POLICIES = ("acrobot.yaml", "cartpole.yaml", "lunar_lander.yaml", "mountain_car.yaml", "pendulum.yaml")

# What the test measures, where it is no accuracy.
MEASURES = {
    **dict.fromkeys((*POLICIES, "paper/cartpole.yaml"), "test/return"),
    "hourly_staircase.yaml": "test/mse",
    "maxsat_random.yaml": "test/satisfied",
}

# The parameters of each network that have a true gradient: those of soft layers, and biases behind the last hard one.
WITH_GRADIENT = {
    **dict.fromkeys(POLICIES, ""),
    "associative_recall.yaml": r"1\.(v_proj|out_proj)\..*|2\..*",
    "digits_baseline.yaml": "",
    "digits_spiking.yaml": "",
    "fashion_attention.yaml": ".*",
    "fashion_conv_spiking.yaml": r"7\..*",
    "fashion_residual.yaml": r"9\..*",
    "fashion_spiking.yaml": "",
    "fashion_staircase.yaml": r"5\..*",
    "hourly_staircase.yaml": r"3\..*",
    "mnist_attention.yaml": ".*",
    "mnist_conv_int8.yaml": r"11\.bias",
    "mnist_conv_spiking.yaml": r"7\..*",
    "mnist_events.yaml": "",
    "mnist_int8.yaml": r"1\..*|3\.bias|5\..*",
    "mnist_integer.yaml": r"5\.bias",
    "mnist_moe.yaml": r"1\..*|3\.experts\..*|4\..*",
    "mnist_sfc.yaml": r"8\.bias",
    "mnist_spiking.yaml": "",
    "mnist_staircase.yaml": r"5\..*",
    "mnist_tfc.yaml": r"8\.bias",
    "paper/attention.yaml": ".*",
    "paper/cartpole.yaml": "",
    "paper/int8.yaml": r"1\..*|3\.bias|5\..*",
    "paper/moe.yaml": r"1\..*|3\.experts\..*|4\..*",
    "paper/spiking.yaml": "",
    "paper/staircase.yaml": r"5\..*",
}


def ids(path):
    return path.relative_to(REPOSITORY / "configs").as_posix()


def test_there_are_configs():
    assert {"digits_spiking.yaml", "mnist_spiking.yaml", "mnist_int8.yaml", "mnist_tfc.yaml"} <= {
        ids(path) for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_a_few_real_steps(path, tmp_path, request, monkeypatch):
    for needed in NEEDS.get(ids(path), ()):
        pytest.importorskip(needed)
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
    assert MEASURES.get(ids(path), "test/accuracy") in record["test_metrics"]
    assert Path(cli.trainer.log_dir).resolve().is_relative_to(tmp_path), "a config must log below the current folder"
    # Nothing that ships may run on the slowest tier, unless it says so itself.
    tiers = [row["tier"] for row in record["plan"]]
    assert "loop" not in tiers or settings["trainer"]["strategy"]["init_args"]["evaluation"] == "loop"
    assert tiers == TIERS.get(ids(path), tiers)


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_the_head_says_how_to_run_it(path):
    head = path.read_text(encoding="utf-8").splitlines()[:5]
    assert any(f"--config configs/{ids(path)}" in line for line in head if line.startswith("#"))


# A formula has no network, whose layers could have a gradient.
WITH_NETWORK = [path for path in CONFIGS if ids(path) != "maxsat_random.yaml"]


@pytest.mark.parametrize("path", WITH_NETWORK, ids=ids)
def test_the_audit_finds_no_gradient_through_hard_layers(path, tmp_path, monkeypatch, capsys):
    for needed in NEEDS.get(ids(path), ()):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # so that no row of the table is folded
    arguments = ["audit", "--config", str(path)]
    if "root" in yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["init_args"]:
        root = write_mnist(write_mnist(tmp_path), folder="FashionMNIST")
        arguments += ["--data.root", str(root)]
    cli = main(arguments)
    printed = re.findall(r"│ network\.(\S+) +│ [\dx ]+ │ (yes|none) +│ +([\d.]+%) │", capsys.readouterr().out)
    assert [name for name, *_ in printed] == [name for name, _ in cli.model.network.named_parameters()]
    expected = {name for name, *_ in printed if re.fullmatch(WITH_GRADIENT[ids(path)], name)}
    found = {name for name, gradient, _ in printed if gradient == "yes"}
    assert found <= expected
    assert all("experts" in name for name in expected - found), "only an expert may lack it, that no sample reaches"
    assert {share for name, _, share in printed if name not in found} <= {"0.0%"}
