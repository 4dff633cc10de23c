"""Networks as arrays: what is refused, and that their numbers are the network's."""

import pytest
import torch
from torch import nn

from lightning_polystep.environments import ENVIRONMENTS, Policy
from lightning_polystep.layers import QuantActivation, QuantLinear, Sign


def test_candidates_differ_in_what_is_given_and_share_the_rest():
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    policy = Policy(network, {"2.weight": torch.ones(5, 2, 3)})
    _, weights, *_ = policy.arrays()
    assert weights.shape == (5, 3 * 5 + 2 * 4)
    expected = torch.cat([network[0].weight, network[0].bias[:, None]], 1).detach().double().flatten()
    assert torch.equal(torch.from_numpy(weights)[:, :15], expected.expand(5, 15))
    assert weights[3, 15:18].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("weight_format", ["int8", "binary", "ternary"])
def test_weights_of_candidates_are_quantised_as_their_layer_does(weight_format):
    layer = QuantLinear(4, 3, weight_format=weight_format)
    stack = torch.randn(6, 3, 4)
    _, weights, *_ = Policy(layer, {"weight": stack}).arrays()
    for candidate, values in enumerate(stack):
        acting = torch.func.functional_call(layer, {"weight": values, "bias": torch.zeros(3)}, torch.eye(4)).T
        assert torch.equal(torch.from_numpy(weights[candidate]).reshape(3, 5)[:, :4], acting.detach().double())


def test_step_functions_are_tables_of_their_jumps():
    network = nn.Sequential(nn.Linear(2, 2), Sign(), nn.Linear(2, 2), QuantActivation(2, scale=0.5), nn.Linear(2, 2))
    _, _, jumps, levels, counts = Policy(network).arrays()
    assert counts.tolist() == [1, 3]
    assert jumps[0, 0] == 0.0
    assert levels[0, :2].tolist() == [-1.0, 1.0]
    assert levels[1].tolist() == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)), "got Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "got ReLU"),
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "a policy is a Linear"),
        (nn.GRUCell(2, 2), "got GRUCell"),
        (QuantLinear(2, 2, input_quant=QuantActivation(8, scale=1.0)), "put the QuantActivation before it"),
    ],
)
def test_other_networks_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        Policy(network)


def test_other_parameters_are_refused():
    with pytest.raises(ValueError, match=r"no parameter weight of shape \(3, 3\)"):
        Policy(nn.Linear(2, 3), {"weight": torch.zeros(1, 3, 3)})


def test_another_environment_is_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1 gives 4 observations and takes 2 outputs"):
        Policy(nn.Linear(3, 2)).check(ENVIRONMENTS["CartPole-v1"])
