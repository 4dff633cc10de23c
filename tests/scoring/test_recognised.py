import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.layers import Sign
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.scoring.stack import NotAStackError


class Net(nn.Module):
    def __init__(self, criterion=None):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 6), Sign(), nn.Linear(6, 3))
        self.criterion = criterion or nn.CrossEntropyLoss()

    def loss(self, x, y):
        return self.criterion(self.network(x), y)


def block_of(module):
    optimizer = PolyStep(module.parameters(), seed=0)
    return find_blocks(module, optimizer.param_groups)[0]


def test_a_stack_offers_its_tiers():
    module = Net()
    recognised = Recognised(module)
    assert recognised.holds
    assert not recognised.squares
    assert recognised.offer(block_of(module)).name == "outcome"


def test_what_is_no_stack_says_why_it_offers_nothing():
    module = nn.Sequential(nn.Linear(2, 2))
    recognised = Recognised(module)
    assert not recognised.holds
    assert recognised.disagreement(torch.tensor(1.0)) is None, "there is nothing that could disagree"
    with pytest.raises(NotAStackError, match="network and criterion"):
        recognised.offer(block_of(module))


def test_a_stack_that_was_given_up_offers_nothing():
    module = Net()
    recognised = Recognised(module)
    recognised.give_up("because")
    with pytest.raises(NotAStackError, match="because"):
        recognised.offer(block_of(module))
    with recognised.capturing():
        module.loss(torch.randn(8, 4), torch.randint(0, 3, (8,)))


def test_a_loss_that_the_stack_does_not_explain_is_told():
    module = Net()
    recognised = Recognised(module)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with torch.no_grad(), recognised.capturing():
        loss = module.loss(x, y)
    assert recognised.disagreement(loss) is None
    assert "the step returned a loss of" in recognised.disagreement(loss + 1)


def test_squares_are_told():
    assert Recognised(Net(nn.MSELoss())).squares


def test_a_stack_that_loses_its_explanation_goes_on_from_the_tape():
    module = Net()
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    engine.step(lambda: module.loss(x, y))
    assert {a.tier.name for a in engine.plan.assignments} == {"outcome"}
    with pytest.warns(UserWarning, match="scored as any other from now on"):
        engine.step(lambda: module.loss(x, y) + functional.relu(module.network(x)).mean())
    assert {a.tier.name for a in engine.plan.assignments} == {"tape"}
