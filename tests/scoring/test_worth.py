"""What units' answers are worth, by the products that take them in and by learned feedback."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import layers as layers_module
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.scoring.worth import ByFeedback, ByTakers
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record


class Mixing(nn.Module):
    """Mixes units by no product, so that nothing but feedback can be learned."""

    def forward(self, x):
        return x.cumsum(-1)


def setting(name, *between, samples=64):
    """Return what answers of a layer are worth, in a linear network of three layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), *between, nn.Linear(5, 4), nn.Linear(4, 3)).double()
    x, y = torch.randn(samples, 6).double(), torch.arange(samples) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    tape, block = recording.taken(), next(each for each in blocks_of(net) if each.name == name)
    scores = Scores.of(recording)
    layers = Layers(recording, scores)
    entries = layers.entries(block)
    found = layers.layer(entries, name).worth
    moment = Moment(tape, scores.slopes(recording), (0, 0, 0))
    typical = {entry.key: torch.full((samples,), 0.3).double() for entry in entries.products}
    return net, found, moment, typical


def of_scores(moment):
    (slopes,) = moment.slopes.values()
    return slopes


def at(moment, step):
    return moment._replace(key=(0, step, 0))


def test_what_the_readout_takes_in_is_worth_its_weights():
    net, found, moment, typical = setting("1")
    assert type(found) is ByTakers
    assert not found.learns
    (worth,) = found.worth(moment).values()
    torch.testing.assert_close(worth, of_scores(moment) @ net[2].weight.detach())
    assert found.on_trial(moment, typical) is found


def test_what_a_hidden_layer_takes_in_is_worth_what_its_mirror_says():
    net, found, moment, typical = setting("0")
    assert type(found) is ByTakers
    assert found.learns
    assert not found.needs_samples
    for step in range(20):
        found.learn(at(moment, step), typical)
    (worth,) = found.worth(moment).values()
    exact = of_scores(moment) @ net[2].weight.detach() @ net[1].weight.detach()
    assert (worth - exact).norm() / exact.norm() < 0.01


def test_behind_something_else_than_a_product_feedback_is_learned():
    net, found, moment, typical = setting("0", Mixing())
    assert type(found) is ByFeedback
    assert found.needs_samples
    for step in range(100):
        found.learn(at(moment, step), typical)
    (worth,) = found.worth(moment).values()
    exact = of_scores(moment) @ net[3].weight.detach() @ net[2].weight.detach()
    exact = exact.flip(-1).cumsum(-1).flip(-1)
    assert (worth - exact).norm() / exact.norm() < 0.1


def test_what_is_learned_is_a_function_of_seed_step_and_micro_batch():
    def memory(*steps):
        _, found, moment, typical = setting("0", Mixing())
        for step in steps:
            found.learn(at(moment, step), typical)
        return found.feedback.memory

    assert all(torch.equal(a, b) for a, b in zip(memory(0, 1).values(), memory(0, 1).values(), strict=True))
    assert not torch.equal(memory(0, 1)["met/0"], memory(0, 2)["met/0"])


@pytest.mark.parametrize("between", [(), (Mixing(),)])
def test_a_trial_learns_and_keeps_nothing(between):
    _, found, moment, typical = setting("0", *between)
    tried = found.on_trial(moment, typical)
    worth = tried.worth(moment)
    memory = found.feedback.memory if between else found.takers[0].mirror.memory
    assert not memory
    found.learn(moment, typical)
    assert memory
    assert found.on_trial(moment, typical) is found
    assert all(torch.equal(*pair) for pair in zip(found.worth(moment).values(), worth.values(), strict=True))


def test_feedback_of_too_many_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(layers_module, "MOST_NUMBERS", 10)
    with pytest.raises(NotOnTapeError, match="too many numbers"):
        setting("0", Mixing())
