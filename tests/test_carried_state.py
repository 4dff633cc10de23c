"""Hidden state outside of the state dict: saved where a fit changes it, and put back to the same bits."""

import pytest
import snntorch
import torch
from torch import nn
from torchmetrics import SumMetric

from lightning_polystep.carried_state import CarriedState, restore
from tests.helpers.boring import FEATURES, Boring, loader, polystep
from tests.helpers.resume import BATCHES, run_rest, run_whole

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")


class Cell(nn.Module):
    """Leaks what it gathers from batch to batch, and keeps that in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        if how == "buffer":
            self.register_buffer("held", torch.zeros(()), persistent=False)
        elif how == "empty buffer":
            self.register_buffer("held", None, persistent=False)
        elif how == "dict":
            self.held = {"v": 0.0}
        else:
            self.held = None

    def forward(self, x):
        held = self.held
        held = held["v"] if self.how == "dict" else held[0] if isinstance(held, tuple) else held
        new = x if held is None else 0.9 * held + x
        if self.how == "dict":
            self.held["v"] = new
        else:
            self.held = (new, None) if self.how == "tuple" else new
        return torch.tanh(new)


class Carrying(Boring):
    """Its hidden layer remembers the batches before."""

    def __init__(self, how):
        super().__init__(polystep)
        neuron = snntorch.Leaky(beta=0.9, init_hidden=True) if how == "snnTorch" else Cell(how)
        self.net[1] = neuron


WAYS = ["buffer", "empty buffer", "attribute", "tuple", "dict", "snnTorch"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("stop", [3, BATCHES, 2 * BATCHES + 1])
def test_a_resume_with_carried_state_is_the_same_run(tmp_path, how, stop):
    options = {"limit_val_batches": 0}
    whole = run_whole(tmp_path, Carrying(how), loader(BATCHES, shuffle=True), **options)
    assert run_rest(tmp_path / f"{stop}.ckpt", Carrying(how), loader(BATCHES, shuffle=True), **options) == whole[stop:]


def test_what_does_not_change_is_left_out():
    module = nn.Sequential(nn.Linear(2, 2), Cell("buffer"))
    module.mask = torch.ones(3)
    module.table = {"a": torch.ones(2)}
    state = CarriedState(module)
    assert state.changed() == {}
    module.mask += 1
    module[1](torch.ones(2))
    assert set(state.changed()) == {"mask", "1.held"}


def test_metrics_lists_and_parameters_are_left_out():
    module = nn.Module()
    module.count, module.history, module.weight = SumMetric(), [], nn.Parameter(torch.ones(2))
    state = CarriedState(module)
    module.count.update(3)
    module.history.append(torch.ones(2))
    with torch.no_grad():
        module.weight += 1
    assert state.changed() == {}


def test_copies_are_saved_and_put_back():
    module = Cell("dict")
    state, memory = CarriedState(module), module.held
    module(torch.ones(FEATURES))
    saved = state.changed()
    module(torch.ones(FEATURES))
    restore(module, saved)
    assert module.held is memory
    assert torch.equal(module.held["v"], torch.ones(FEATURES))


def test_what_is_too_large_is_said_once():
    module = Cell("attribute")
    state = CarriedState(module)
    module(torch.ones(5 * 2**20))
    with pytest.warns(UserWarning, match=r"held carries 20 MiB .*: register it as a persistent buffer") as caught:
        saved = [state.changed(), state.changed()]
    assert saved == [{}, {}]
    assert len(caught) == 1


def test_state_that_was_let_go_is_let_go_again():
    module = Cell("attribute")
    module.held = torch.ones(2)
    state = CarriedState(module)
    module.held = None
    other = Cell("attribute")
    other.held = torch.ones(2)
    restore(other, state.changed())
    assert other.held is None


def test_state_of_a_part_that_is_gone_is_said():
    with pytest.warns(UserWarning, match=r"hidden state 3\.held, and the module has no such part"):
        restore(nn.Sequential(nn.Linear(1, 1)), {"3.held": torch.ones(1)})
