"""Rollouts: each candidate by itself, each action the network's, each return what the steps earn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_polystep.environments import ENVIRONMENTS, Policy, record, rollouts
from lightning_polystep.layers import QuantActivation, QuantLinear, Sign

SEEDS = torch.tensor([3, 1, 4])


def network_of(environment, hidden=None):
    sizes = environment.observations, 6, environment.outputs
    return nn.Sequential(nn.Linear(*sizes[:2]), hidden or nn.Tanh(), nn.Linear(*sizes[1:]))


def candidates_of(network, count):
    return {name: value.detach() + torch.randn(count, *value.shape) for name, value in network.named_parameters()}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_return_depends_on_what_else_is_rolled_out(name):
    environment = ENVIRONMENTS[name]
    network = network_of(environment)
    stack = candidates_of(network, 4)
    together = rollouts(environment, Policy(network, stack), SEEDS)
    for candidate in range(4):
        alone = Policy(network, {name: values[candidate : candidate + 1] for name, values in stack.items()})
        for episode in range(3):
            one = rollouts(environment, alone, SEEDS[episode : episode + 1])
            assert one.returns[0, 0] == together.returns[candidate, episode]
            assert one.steps[0, 0] == together.steps[candidate, episode]


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
@pytest.mark.parametrize("hidden", [nn.Tanh(), Sign(), QuantActivation(8, signed=True, scale=2 / 127)], ids=str)
def test_actions_are_the_networks_and_returns_what_its_steps_earn(name, hidden):
    environment = ENVIRONMENTS[name]
    network = network_of(environment, hidden).double()
    states, actions = record(environment, Policy(network), 5)
    seen, total = np.empty(environment.observations), 0.0
    for state, action, after in zip(states[:-1], actions, states[1:], strict=True):
        environment.observe(state.numpy(), seen)
        scaled = (torch.from_numpy(seen) - torch.tensor(environment.centre)) / torch.tensor(environment.size).double()
        with torch.no_grad():
            output = network(scaled)
        if environment.actions:
            assert int(output.argmax()) == int(action)
        else:
            assert float(action) == pytest.approx(float(output.clamp(-1, 1) * environment.largest_action), abs=1e-6)
        moved = state.numpy().copy()
        total += environment.advance(moved, float(action))[0]
        np.testing.assert_array_equal(moved, after.numpy())
    result = rollouts(environment, Policy(network), torch.tensor([5]))
    assert float(result.returns) == pytest.approx(total)
    assert int(result.steps) == len(actions)


def test_binary_weights_roll_out_by_their_signs():
    environment = ENVIRONMENTS["CartPole-v1"]
    layer = QuantLinear(4, 2, weight_format="binary")
    acting = nn.Linear(4, 2)
    with torch.no_grad():
        acting.weight.copy_(layer.weight_codes() * layer.weight_scale[:, None])
        acting.bias.copy_(layer.bias)
    assert torch.equal(*(rollouts(environment, Policy(each), SEEDS).returns for each in (layer, acting)))


def test_a_policy_of_another_size_is_refused():
    with pytest.raises(ValueError, match="Acrobot-v1 gives 6 observations"):
        rollouts(ENVIRONMENTS["Acrobot-v1"], Policy(nn.Linear(4, 2)), SEEDS)


def test_an_episode_is_gymnasiums_from_start_to_end():
    gymnasium = pytest.importorskip("gymnasium")
    environment = ENVIRONMENTS["CartPole-v1"]
    network = network_of(environment).double()
    theirs = gymnasium.make(environment.name)
    theirs.reset(seed=0)
    states, actions = record(environment, Policy(network), 5)
    theirs.unwrapped.state, total = states[0].numpy(), 0.0
    for action in actions:
        _, reward, over, _, _ = theirs.step(int(action))
        total += reward
    assert over
    assert total == float(rollouts(environment, Policy(network), torch.tensor([5])).returns)
    np.testing.assert_allclose(theirs.unwrapped.state, states[-1].numpy(), atol=1e-9)


def test_an_environment_of_ones_own_is_a_few_lines_as_the_documentation_has_them():
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    names = {}
    exec(page.split("```python")[1].split("```")[0], names)
    push_back = nn.Linear(2, 2)
    with torch.no_grad():
        push_back.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
        push_back.bias.zero_()
    away = {"weight": torch.stack([push_back.weight.detach(), -push_back.weight.detach()])}
    result = rollouts(names["MASS"], Policy(push_back, away), SEEDS)
    assert bool((result.returns[0] > -60).all())
    assert result.steps[0].tolist() == [200] * 3
    assert bool((result.steps[1] < 200).all()), "pushed away, it leaves"
