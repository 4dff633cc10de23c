"""Blocks follow what is frozen, unfrozen, added and replaced, and nothing else moves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import Sign
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.trained import Trained
from tests.helpers.engines import digest, engine_of, network, problem


def stack():
    module = nn.Module()
    module.network = nn.Sequential(nn.Linear(4, 6), Sign(), nn.Linear(6, 3))
    module.criterion = nn.CrossEntropyLoss()
    return module


def trained_of(module, **options):
    return Trained(module, PolyStep(module.parameters(), seed=0), **{"recognises": True, **options})


def test_blocks_are_found_once_for_the_same_parameters():
    trained = trained_of(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    assert trained.blocks == []
    assert trained.follow(planned=False)
    blocks = trained.blocks
    assert not trained.follow(planned=True)
    assert trained.blocks is blocks
    assert trained.parameters == frozenset(trained.module.parameters())


def test_frozen_parameters_are_in_no_set_of_trained_ones():
    trained = trained_of(nn.Linear(4, 3))
    trained.follow(planned=False)
    trained.module.bias.requires_grad_(False)
    assert trained.follow(planned=True)
    assert trained.parameters == {trained.module.weight}
    trained.module.bias.requires_grad_(True)
    assert trained.follow(planned=True)
    assert trained.parameters == set(trained.module.parameters())


@pytest.mark.parametrize("planned", [False, True])
def test_a_part_that_is_replaced_is_recognised_anew_and_told_where_there_was_a_plan(planned, recwarn):
    trained = trained_of(stack())
    trained.follow(planned=False)
    before = trained.recognised
    assert before.holds
    trained.module.network[1] = nn.Sequential()
    assert trained.follow(planned=planned)
    assert trained.recognised is not before
    assert ["network has changed" in str(each.message) for each in recwarn] == [True] * planned


def test_what_is_not_to_be_recognised_never_is():
    trained = trained_of(stack(), recognises=False)
    assert trained.recognised.reason == "not asked for"
    trained.module.network[1] = Sign()
    trained.follow(planned=False)
    assert not trained.recognised.holds


def test_what_no_library_holds_back_is_probed():
    trained = trained_of(stack())
    trained.follow(planned=False)
    assert trained.held() == {}


def test_parameters_that_are_frozen_later_stay_and_move_again_when_unfrozen():
    torch.manual_seed(0)
    module, (inputs, targets) = network(), problem()
    engine = engine_of(module)

    def steps(count):
        before = [p.detach().clone() for p in module.parameters()]
        for _ in range(count):
            engine.step(lambda: F.cross_entropy(module(inputs), targets))
        return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]

    assert all(steps(2))
    module[0].requires_grad_(False)
    module[4].bias.requires_grad_(False)
    moved = dict(zip([name for name, _ in module.named_parameters()], steps(2), strict=True))
    assert moved == {
        "0.weight": False,
        "0.bias": False,
        "1.weight": True,
        "1.bias": True,
        "4.weight": True,
        "4.bias": False,
    }
    module.requires_grad_(True)
    assert all(steps(2))


def test_parameters_frozen_from_the_start_stay():
    module, inputs = nn.Linear(6, 3), problem()[0]
    module.weight.requires_grad_(False)
    before = module.weight.clone()
    bias = module.bias.detach().clone()
    engine = engine_of(module)
    engine.step(lambda: (module(inputs) - 1).square().mean())
    assert torch.equal(module.weight, before)
    assert not torch.equal(module.bias, bias)


def test_a_group_that_is_added_later_is_trained():
    module, inputs = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), problem()[0]
    engine = engine_of(module, optimizer=PolyStep(module[1].parameters(), seed=0, rank=4))
    before = digest(module[0])
    engine.step(lambda: module(inputs).square().mean())
    assert digest(module[0]) == before
    engine.optimizer.add_param_group({"params": list(module[0].parameters())})
    engine.step(lambda: module(inputs).square().mean())
    assert digest(module[0]) != before
