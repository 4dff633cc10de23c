"""Starts are a function of the episode's seed alone, and spread over their box."""

import pytest
import torch

from lightning_polystep.environments import ENVIRONMENTS, compiled

ACROBOT = ENVIRONMENTS["Acrobot-v1"]


def test_a_start_is_a_function_of_its_seed():
    seeds = torch.tensor([5, -7, 2**62])
    assert torch.equal(ACROBOT.starts(seeds)[[2, 0]], ACROBOT.starts(seeds[[2, 0]]))
    assert len(ACROBOT.starts(seeds).unique()) == 12


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_starts_fill_their_box_evenly(name):
    environment = ENVIRONMENTS[name]
    starts = environment.starts(torch.arange(20_000))
    low, high = (torch.tensor(side, dtype=torch.float64) for side in (environment.lowest, environment.highest))
    assert bool(((starts >= low) & (starts <= high)).all())
    width = high - low
    shares = ((starts - low) / torch.where(width > 0, width, 1.0))[:, width > 0]
    assert bool((shares.mean(0) - 0.5).abs().max() < 0.01)
    assert bool((shares.var(0) - 1 / 12).abs().max() < 0.003)
    assert abs(float(torch.corrcoef(shares.T).reshape(-1)[1])) < 0.03 if shares.shape[1] > 1 else True


@pytest.mark.parametrize("seeds", [torch.tensor([1.0]), torch.tensor([[1]])])
def test_other_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="must be a vector of int64"):
        ACROBOT.starts(seeds)


def test_sizes_follow_from_the_numbers():
    assert (ACROBOT.observations, ACROBOT.outputs) == (6, 3)
    assert ENVIRONMENTS["Pendulum-v1"].outputs == 1


def test_compiled_functions_are_called_from_python():
    assert compiled(lambda x: x + 1)(2) == 3
