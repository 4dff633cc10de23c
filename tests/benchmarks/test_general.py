import argparse
from importlib import import_module

import pytest
import torch

from benchmarks import general, general_data, general_networks
from benchmarks.common import REPOSITORY
from benchmarks.general_networks import NETWORKS
from benchmarks.general_worker import load

LIBRARIES = {entry.library for entry in NETWORKS.values()}

# Libraries of other people warn of their own imports and of torch's news.
pytestmark = pytest.mark.filterwarnings("ignore")


def need(name):
    if why := general_networks.missing(name):
        pytest.skip(why)


def check(found):
    assert found["times_adam"]["low"] <= found["times_adam"]["median"] <= found["times_adam"]["high"]
    assert found["first_step"] > 0
    assert 0 <= found["test"] <= 1
    assert all(fit["steps"] >= 1 and fit["seconds"] > 0 for fit in found["fits"])


@pytest.mark.slow
def test_a_network_is_trained_in_both_ways_and_by_another_checkout(quick, tmp_path):
    need("wine")
    (tmp_path / "lightning_polystep").symlink_to(REPOSITORY / "lightning_polystep")
    results = quick("general", "--nets", "wine", "--other", tmp_path, "--plot", tmp_path / "picture.png")
    found = results["networks"]["wine"]
    check(found["ours"])
    check(found["adam"])
    assert found["adam"]["times_adam"]["median"] == 1
    assert found["ours"]["tiers"]
    assert not found["adam"]["tiers"]
    check(found["other"])
    assert found["other"]["tiers"] == found["ours"]["tiers"]
    assert results["other"] is None
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_a_folder_without_the_package_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        general.parse(["--other", str(tmp_path)])
    assert "holds no package" in capsys.readouterr().err
    with pytest.raises(ImportError, match="holds no package"):
        load(str(tmp_path))


def test_a_failure_is_kept_and_the_rest_goes_on(tmp_path):
    options = general.parse(["--quick"])
    comparison = general.Comparison("wine", options, tmp_path / "missing.pt")
    try:
        found = comparison.run()
    finally:
        comparison.close()
    for way in ("adam", "ours"):
        assert "missing.pt" in found[way]["error"]
        assert "test" not in found[way]


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_every_name_has_its_network(library):
    names = {name for name, entry in NETWORKS.items() if entry.library == library}
    need(next(iter(names)))
    assert set(import_module(f"benchmarks.general_networks.with_{library}").CASES) == names


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_gradient_and_predicts_classes(name):
    need(name)
    data = NETWORKS[name].data
    splits = general_data.splits(data, argparse.Namespace(quick=True, seed=0))
    (inputs, labels), classes = (part[:6] for part in splits["train"]), 3 if data == "wine" else 10
    torch.manual_seed(0)
    case = general_networks.make(name)
    loss = case.loss(inputs, labels)
    assert loss.numel() == 1
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in case.network.parameters())
    predictions = case.predict(inputs)
    assert predictions.shape == labels.shape
    assert 0 <= predictions.min() <= predictions.max() < classes
    assert not hasattr(case.network, "network")
    assert not hasattr(case.network, "criterion")


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(general_networks, "find_spec", lambda _name: None)
    assert "norse is not installed: pip install" in general_networks.missing("norse")
