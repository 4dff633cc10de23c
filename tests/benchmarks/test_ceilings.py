import pytest
import yaml

from benchmarks.ceilings import NETS

COMMAND_KEYS = {
    "net",
    "ours",
    "ceiling",
    "difference",
    "paper",
    "remark",
    "adam_rates",
    "adam_choice",
    "config",
    "data",
}


def check(found):
    assert set(found) == COMMAND_KEYS
    for way in ("ours", "ceiling"):
        assert len(found[way]["runs"]) == 2
        assert 0 <= found[way]["low"] <= found[way]["mean"] <= found[way]["high"] <= 1
    assert found["ours"]["candidates"] > 0
    assert found["ours"]["steps"] == 2
    assert found["difference"] == pytest.approx(found["ours"]["mean"] - found["ceiling"]["mean"])
    assert found["adam_choice"]["rate"] in [row["rate"] for row in found["adam_rates"]]


@pytest.mark.filterwarnings("ignore:Seed")
def test_both_ways_of_training_are_compared(quick, tmp_path):
    nets = ["staircase", "integer", "spiking"]
    results = quick("ceilings", "--nets", *nets, "--seeds", 2, "--plot", tmp_path / "picture.png")
    assert list(results) == nets
    for found in results.values():
        check(found)
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.parametrize("name", NETS)
def test_every_network_has_its_config(name):
    settings = yaml.safe_load(NETS[name].path.read_text(encoding="utf-8"))
    if settings["data"]["class_path"] in {"datamodules.MNIST", "datamodules.FashionMNIST"}:
        assert {"sizes", "channels"} & settings["model"]["init_args"]["network"]["init_args"].keys()


@pytest.mark.filterwarnings("ignore:Seed")
def test_convolutions_are_compared_too(quick):
    check(quick("ceilings", "--nets", "fashion_residual", "--seeds", 2, "--adam-rates", 0.001)["fashion_residual"])


@pytest.mark.filterwarnings("ignore:Seed")
def test_tokens_are_compared_too(quick):
    check(quick("ceilings", "--nets", "recall", "--seeds", 2, "--adam-rates", 0.001)["recall"])
