"""Environments that gymnasium plays: the same returns as ours, whatever is played beside them, and clear refusals."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_polystep.environments import (
    ENVIRONMENTS,
    Environment,
    Policy,
    environment_named,
    gymnasium_environment,
    rollouts,
)

gymnasium = pytest.importorskip("gymnasium", minversion="1.1")
SEEDS = torch.tensor([3, 1, 4, 1, 5])


class StartsOfGymnasium(Environment):
    """Ours, from the states in which gymnasium's episodes of the same seeds start."""

    def starts(self, seeds):
        world, states = gymnasium.make(self.name), []
        for seed in seeds.tolist():
            world.reset(seed=seed)
            states.append(np.array(world.unwrapped.state, np.float64))
        return torch.from_numpy(np.stack(states))


def twins(name):
    ours = StartsOfGymnasium(**vars(ENVIRONMENTS[name]))
    return ours, gymnasium_environment(name, centre=ours.centre, size=ours.size)


def policy_of(world, candidates, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(world.observations, 6), nn.Tanh(), nn.Linear(6, world.outputs))
    stack = {name: value.detach() + torch.randn(candidates, *value.shape) for name, value in network.named_parameters()}
    return network, stack


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_returns_are_those_of_the_compiled_dynamics(name):
    ours, theirs = twins(name)
    assert (theirs.observations, theirs.outputs, theirs.horizon) == (ours.observations, ours.outputs, ours.horizon)
    assert theirs.threshold == ours.threshold
    policy = Policy(*policy_of(ours, 32))
    mine, played = rollouts(ours, policy, SEEDS), rollouts(theirs, policy, SEEDS)
    assert len(mine.returns.unique()) > 4, "episodes differ"
    assert torch.equal(played.steps, mine.steps)
    # gymnasium's observations are rounded to float32: choices are the same, numbers nearly so.
    torch.testing.assert_close(played.returns, mine.returns, rtol=0 if theirs.actions else 1e-4, atol=0)


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3"])
def test_no_return_depends_on_what_else_is_played(name):
    if name == "LunarLander-v3":
        pytest.importorskip("Box2D")
    world = gymnasium_environment(name)
    network, stack = policy_of(world, 30)
    # More episodes than places: they are played one after the other, in no fixed place.
    together = rollouts(world, Policy(network, stack), SEEDS)
    assert together.returns.shape == (30, 5)
    assert torch.equal(together.returns[:, 1], together.returns[:, 3]), "the same seed"
    for candidate in (0, 17, 29):
        alone = Policy(network, {name: values[candidate : candidate + 1] for name, values in stack.items()})
        one = rollouts(world, alone, SEEDS[2:3])
        assert one.returns[0, 0] == together.returns[candidate, 2]
        assert one.steps[0, 0] == together.steps[candidate, 2]


def test_observations_are_measured_by_random_play():
    pendulum = gymnasium_environment("Pendulum-v1")
    assert pendulum.size == gymnasium_environment("Pendulum-v1").size
    assert 0.5 < pendulum.size[0] < 0.9, "a cosine"
    assert 1.5 < pendulum.size[2] < 5.0, "up to 8 a second"
    given = gymnasium_environment("Pendulum-v1", size=(1.0, 2.0, 3.0))
    assert given.size == (1.0, 2.0, 3.0)
    assert given.centre == pendulum.centre


def test_options_reach_the_environment():
    heavy, light = gymnasium_environment("Pendulum-v1", {"g": 20.0}), gymnasium_environment("Pendulum-v1", {"g": 1.0})
    policy = Policy(nn.Linear(3, 1))
    assert not torch.equal(rollouts(heavy, policy, SEEDS).returns, rollouts(light, policy, SEEDS).returns)


def test_negative_seeds_are_seeds_too():
    world = gymnasium_environment("CartPole-v1")
    result = rollouts(world, Policy(nn.Linear(4, 2)), torch.tensor([-1, -(2**63)]))
    assert bool((result.steps > 0).all())


def test_an_episode_in_frames():
    pytest.importorskip("pygame")
    world = gymnasium_environment("CartPole-v1")
    policy = Policy(nn.Linear(4, 2))
    length = int(rollouts(world, policy, torch.tensor([7])).steps)
    steps, frames = zip(*world.frames(policy, 7, 3), strict=True)
    assert steps[0] == 0
    assert steps[-1] == length
    assert len(frames) == 3
    assert frames[0].shape[2] == 3
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nope-v1", "gymnasium makes no Nope-v1"),
        ("FrozenLake-v1", "FrozenLake-v1: a policy sees numbers"),
    ],
)
def test_what_policies_cannot_play_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        environment_named(name)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="CartPole-v1 gives 4 observations and takes 2 outputs"):
        rollouts(gymnasium_environment("CartPole-v1"), Policy(nn.Linear(3, 2)), SEEDS)


def test_without_gymnasium_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert environment_named("CartPole-v1") is ENVIRONMENTS["CartPole-v1"]
    with pytest.raises(ModuleNotFoundError, match=r"Nope-v1 has no compiled dynamics.*lightning-polystep\[policies\]"):
        environment_named("Nope-v1")
