import pytest
import torch

from benchmarks import peer
from benchmarks.surrogate import with_surrogate
from models import SpikingMLP


def check(found):
    assert set(found) >= {"seconds_to_test", "last_test", "test_at_best_val", "seconds", "steps", "runs"}
    assert set(found["seconds_to_test"]) == {"0.95", "0.96", "0.97", "0.972"}
    assert len(found["runs"][0]["curve"]) >= 1


def test_without_the_peer(quick, monkeypatch):
    monkeypatch.setattr(peer, "missing", lambda: "left out")
    results = quick("time_to_accuracy")
    check(results["ours"])
    check(results["surrogate"])
    shifts = 2 if results["config"]["data"]["init_args"].get("shift") else 1
    assert len(results["adam_tuning"]) == 4 * shifts
    assert set(results["adam_choice"]) == {"rate", "schedule", "shift", "epochs"}
    assert results["config"]["model"]
    assert "peer" not in results


def test_with_the_peer(quick, with_peer, tmp_path):
    results = quick("time_to_accuracy", "--plot", tmp_path / "picture.png")
    check(results["peer"])
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "atan"])
def test_the_surrogate_changes_the_backward_pass_alone(surrogate):
    network, images = SpikingMLP((6, 5, 3), num_steps=7), 3 * torch.rand(20, 6)
    smooth = with_surrogate(network, surrogate)
    scores = smooth(images)
    assert torch.equal(scores, network(images))
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in smooth.parameters())
    assert all(p.grad is None for p in network.parameters())
