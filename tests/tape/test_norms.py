"""Normalisations by the statistics of the step, and what slopes by what goes into them are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.tape import Dense, compile_program
from lightning_polystep.tape.flow_rules import REDUCTIONS
from lightning_polystep.tape.norms import batch_statistics, but_for_what_it_undoes, is_norm, slopes_before
from tests.helpers.tapes import record

NORMS = {
    "batch": (lambda: nn.BatchNorm1d(5), (20, 5)),
    "batch of images": (lambda: nn.BatchNorm2d(5), (8, 5, 3, 4)),
    "batch without a scale": (lambda: nn.BatchNorm1d(5, affine=False), (20, 5)),
    "layer": (lambda: nn.LayerNorm(5), (8, 3, 5)),
    "layer of two axes": (lambda: nn.LayerNorm((3, 5)), (8, 3, 5)),
    "groups": (lambda: nn.GroupNorm(2, 6), (8, 6, 3, 4)),
    "instances": (lambda: nn.InstanceNorm2d(5), (8, 5, 3, 4)),
}


class Normed(nn.Module):
    def __init__(self, norm, width):
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.ones(1)), norm
        if getattr(norm, "weight", None) is not None:
            nn.init.normal_(norm.weight, 1.0, 0.3)

    def forward(self, x):
        return self.norm(self.scale * x)


def setting(kind):
    make, shape = NORMS[kind]
    torch.manual_seed(0)
    net, x = Normed(make(), shape).double(), torch.randn(shape).double()
    recording, _, _ = record(net, lambda: net(x).square().flatten(1).sum(1).mean())
    tape = recording.taken()
    (operation,) = [each for each in tape.operations if is_norm(each)]
    return net, x, recording, tape, operation


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_slopes_by_what_goes_in_are_those_of_the_derivative(kind):
    net, x, _, tape, operation = setting(kind)
    shape = tape.values[operation.operands[0]].tensor.shape
    slopes = torch.randn(tape.values[operation.outputs[0]].tensor.shape).double()
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        (exact,) = torch.autograd.grad(net.norm(given), given, slopes.reshape(x.shape))
    torch.testing.assert_close(
        slopes_before(operation, tape, slopes), exact.reshape(shape), rtol=1e-2, atol=2e-3
    )  # eps


@pytest.mark.parametrize("kind", sorted(NORMS))
def test_a_shift_and_a_scaling_of_all_that_is_normalised_together_say_nothing(kind):
    _, _, _, tape, operation = setting(kind)
    recorded = tape.values[operation.operands[0]].tensor
    left = but_for_what_it_undoes(operation, recorded, 3.0 + 2.0 * recorded)
    assert left.abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["batch of images", "layer", "groups"])
def test_by_the_statistics_of_the_step_it_acts_place_by_place(kind):
    _, _, recording, tape, operation = setting(kind)
    made, given = operation.outputs[0], operation.operands[0]
    program = compile_program(tape, {given: 1}, recording.loss, as_recorded=True, keeps_statistics=True)
    dense = Dense.of(tape, program, {given}, [made])
    value = tape.values[given].tensor
    at = tuple(size // 2 for size in value.shape)
    shifted = value.clone()
    shifted[at] += 1
    out = dense.run(tape, {given: torch.stack([value, shifted])})[made]
    torch.testing.assert_close(out[0], tape.values[made].tensor)
    changed = out[1] != out[0]
    assert changed.sum() == 1
    assert changed[at]


class Step(nn.Module):
    """Passes on signs."""

    def forward(self, x):
        return (x > 0).to(x)


class ByHand(nn.Module):
    """A norm over samples that its author wrote out, between two layers or behind both."""

    def __init__(self, kind, where):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.kind, self.where = kind, where

    def norm(self, x):
        if self.kind == "all":
            return (x - x.mean()) / (x.var(unbiased=False) + 1e-4).pow(0.5)
        if self.kind == "each unit":
            return (x - x.mean(0)) / (x.std(0) + 1e-4)
        if self.kind == "parts of all":
            return x / x.abs().amax()
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)  # of each sample

    def forward(self, x):
        x = self.first(x)
        x = self.norm(x) if self.where == "between" else x
        x = self.second((x > 0).to(x))
        return self.norm(x) if self.where == "behind" else x


@pytest.mark.parametrize(
    ("kind", "where"),  # those of each unit between layers are followed exactly
    [("all", "between"), ("all", "behind"), ("each unit", "behind"), ("parts of all", "between")],
)
def test_statistics_that_somebody_takes_by_hand_are_kept(kind, where):
    torch.manual_seed(0)
    net, x, y = ByHand(kind, where).double(), torch.randn(20, 6).double(), torch.arange(20) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    tape = recording.taken()
    rows = {tape.leaves[id(net.first.weight)]: 0, tape.leaves[id(net.first.bias)]: 0}
    assert compile_program(tape, rows, recording.loss).sample is None
    program = compile_program(tape, rows, recording.loss, as_recorded=True, keeps_statistics=True)
    assert program.samples == 20
    kept = {index for step in program.steps for index in program.operation(tape, step.number).operands}
    kept -= program.home.keys()
    found = [tape.operations[tape.values[i].producer].function for i in kept if tape.values[i].producer is not None]
    assert any(function.overloadpacket in REDUCTIONS for function in found)


@pytest.mark.parametrize("where", ["between", "behind"])
def test_statistics_of_each_sample_are_no_statistics_of_a_batch(where):
    torch.manual_seed(0)
    net, x, y = ByHand("each sample", where).double(), torch.randn(20, 6).double(), torch.arange(20) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y) + 0.1 * net.first(x).mean())
    tape = recording.taken()
    rows = {tape.leaves[id(net.first.weight)]: 0}
    program = compile_program(tape, rows, recording.loss, as_recorded=True, keeps_statistics=True)
    assert program.samples == 20
    assert batch_statistics(tape, program) == set()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, momentum=None)])
def test_a_network_that_ends_in_a_batch_norm_is_looked_at_layer_by_layer(norm):
    """As networks of few bits do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), Step(), nn.Linear(64, 3), norm)
    x = torch.randn(256, 6)
    y = (x[:, :3] + x[:, 3:]).argmax(1)
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(net(x), y))) for _ in range(15)]
    tiers = {each.block.name: each.tier.name for each in engine.plan.assignments}
    assert tiers["0"] == tiers["2"] == "units"
    assert losses[-1] < 0.6 * losses[0]


def test_a_network_with_a_norm_by_hand_is_looked_at_layer_by_layer():
    torch.manual_seed(0)
    net = ByHand("all", "behind")
    net.first, net.second = nn.Linear(6, 64), nn.Linear(64, 3)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    engine = Engine(net, PolyStep(net.parameters(), seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(4 * net(x), y))) for _ in range(15)]
    tiers = {each.block.name: each.tier.name for each in engine.plan.assignments}
    assert tiers["second"] == "units"
    assert losses[-1] < 0.8 * losses[0]
