"""Blocks of the subspace "joint" become one particle per parameter group."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.layers import LIF, QuantLinear, Sign


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def blocks_of(module, groups=None):
    return find_blocks(module, PolyStep(groups or module.parameters(), subspace="joint").param_groups)


def test_all_parameters_of_a_group_are_one_row_and_split_into_themselves():
    module = network()
    (block,) = blocks_of(module)
    assert (block.rows, block.dim) == (1, 4 * 8 + 8 + 8 * 3 + 3)
    assert dict(zip(block.parameter_names, block.parameters, strict=True)) == dict(module.named_parameters())
    row = block.join([parameter.detach() for parameter in block.parameters])
    assert all(torch.equal(*pair) for pair in zip(block.split(row), block.parameters, strict=True))


def test_each_layer_has_its_own_scale():
    (block,) = blocks_of(network())
    assert block.scales == (5**-0.5, 5**-0.5, 9**-0.5, 9**-0.5)


def test_each_group_is_a_particle_of_its_own():
    module = network()
    groups = [{"params": module[0].parameters()}, {"params": module[2].parameters(), "lr": 0.5}]
    assert [(block.name, block.group["lr"]) for block in blocks_of(module, groups)] == [("0", 0.1), ("2", 0.5)]


def test_groups_of_other_subspaces_stay_as_they_are():
    module = network()
    groups = [{"params": module[0].parameters()}, {"params": module[2].parameters(), "subspace": "gaussian"}]
    assert [(block.subspace, block.rows) for block in blocks_of(module, groups)] == [("joint", 1), ("gaussian", 3)]


def test_what_is_frozen_stays_out_and_what_is_shared_comes_in_once():
    module = network()
    module[0].bias.requires_grad_(False)
    module.append(module[2])
    (block,) = blocks_of(module)
    assert block.parameter_names == ("0.weight", "2.weight", "2.bias")


def test_constants_of_neurons_and_tables_stay_apart_and_say_why():
    module = nn.Sequential(
        nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3), LIF(beta=nn.Parameter(torch.tensor(0.9)))
    )
    table, joint, constant = blocks_of(module)
    assert (joint.subspace, joint.parameter_names) == ("joint", ("1.weight", "1.bias"))
    assert (table.rows, table.padding, constant.constant) == (5, 0, True)
    assert "apart from the joint particle" in table.remark
    assert "a scale of its own" in constant.remark


class Task(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.network, self.criterion = layers, nn.CrossEntropyLoss()

    def loss(self, x, y):
        return self.criterion(self.network(x), y)


@pytest.mark.parametrize("hidden", [nn.Tanh(), Sign()], ids=str)
def test_the_tape_scores_it_as_the_loop_does_and_it_learns(hidden):
    x = torch.randn(64, 4)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    first = Task(nn.Sequential(nn.Linear(4, 8), hidden, nn.Linear(8, 3)))
    ends = []
    for evaluation in ("auto", "loop"):
        module = copy.deepcopy(first)
        optimizer = PolyStep(module.parameters(), subspace="joint", rank=8, lr=0.3, epsilon=0.5, seed=0)
        engine = Engine(module, optimizer, evaluation=evaluation, announce=None)
        losses = [float(engine.step(lambda m=module: m.loss(x, y))) for _ in range(25)]
        (assignment,) = engine.plan.assignments
        assert assignment.tier.name == ("loop" if evaluation == "loop" else "tape")
        assert engine.plan.last_candidates == {"network.0 and 1 more": 16}
        assert losses[-1] < 0.9 * losses[0]
        ends.append(torch.cat([parameter.flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(*ends, atol=1e-3, rtol=1e-3)


def test_momentum_and_reach_come_back_from_a_checkpoint():
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    runs = []
    for stop in (None, 3):
        module = network()
        optimizer = PolyStep(module.parameters(), subspace="joint", rank=4, seed=0)
        engine = Engine(module, optimizer, announce=None)
        for step in range(6):
            if step == stop:
                state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(module.state_dict())
                module = network()
                optimizer = PolyStep(module.parameters(), subspace="joint", rank=4, seed=5)
                engine = Engine(module, optimizer, announce=None)
                module.load_state_dict(weights)
                optimizer.load_state_dict(state)
            engine.step(lambda: functional.cross_entropy(module(x), y))  # noqa: B023
        runs.append(torch.cat([parameter.flatten() for parameter in module.parameters()]))
    assert torch.equal(*runs)


def test_latent_binary_weights_are_part_of_it():
    module = nn.Sequential(QuantLinear(4, 3, weight_format="binary"), Sign(), nn.Linear(3, 2))
    (block,) = blocks_of(module)
    assert block.parameter_names == ("0.weight", "0.bias", "2.weight", "2.bias")
