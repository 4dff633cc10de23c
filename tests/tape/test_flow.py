"""Operators that torch does not know are replayed by units when their package says how axes go through them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.tape import Flow, elementwise, flows, replays
from lightning_polystep.tape.execute import _REPLAYS
from lightning_polystep.tape.flow import FLOWS, opaque, rule_of
from tests.helpers.tapes import assert_parity


@torch.library.custom_op("tape_test::squash", mutates_args=())
def squash(x: torch.Tensor, gain: float) -> torch.Tensor:
    """Compute what torch cannot look into."""
    return torch.from_numpy(gain * x.numpy() / (1 + abs(x.numpy())))


@squash.register_vmap
def _squash_many(info, batched, x, gain):
    return squash(x, gain), batched[0]


@torch.library.custom_op("tape_test::soften", mutates_args=())
def soften(x: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of each row."""
    return x - x.mean(-1, keepdim=True)


def network(middle):
    layers, x, y = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3)]).double(), torch.randn(6, 4).double(), None
    y = torch.randint(3, (6,))
    return layers, lambda: F.cross_entropy(layers[1](middle(layers[0](x))), y)


@pytest.fixture
def own_rules():
    """Rules that a test registers are gone after it."""
    known, run = dict(FLOWS), dict(_REPLAYS)
    yield
    FLOWS.clear()
    FLOWS.update(known)
    _REPLAYS.clear()
    _REPLAYS.update(run)


def local_operations(found):
    """Return how many operations are computed of the candidates' units alone."""
    script = found["0"].tier.recording.script(found["0"].block)
    return [str(found["0"].tier.recording.taken().operations[s.number].function) for s in script.program.steps
            if s.stage == 0]  # fmt: skip


def test_an_operator_without_a_rule_mixes_everything_and_is_right(own_rules):
    assert rule_of(torch.ops.tape_test.squash.default) is opaque
    found = assert_parity(*network(lambda h: squash(h, 0.7)))
    assert not any("squash" in name for name in local_operations(found))


def test_an_elementwise_operator_of_another_package_is_replayed_by_units(own_rules):
    flows(torch.ops.tape_test.squash)(elementwise)
    found = assert_parity(*network(lambda h: squash(h, 0.7)))
    assert any("squash" in name for name in local_operations(found))


def test_a_package_may_say_how_axes_go_and_how_an_operator_runs(own_rules):
    @flows(torch.ops.tape_test.soften)
    def along_rows(site):
        axes = site.operands[0]
        return Flow(((*axes[:-1], site.labels.fresh(site.shapes[0][-1])),), (frozenset({len(axes) - 1}),))

    ran = []

    @replays(torch.ops.tape_test.soften)
    def run(frame, operation):
        ran.append(operation)
        return soften(frame.read(operation.operands[0])[0])

    found = assert_parity(*network(soften))
    assert ran
    program = found["0"].tier.recording.script(found["0"].block).program
    assert program.samples == 6, "samples stay apart"


def test_a_rule_that_does_not_fit_its_operation_is_not_believed(own_rules):
    @flows(torch.ops.tape_test.soften)
    def wrong(site):
        return Flow((site.operands[0][:-1],), (frozenset(),))

    assert_parity(*network(soften))


def test_the_neurons_of_the_package_are_replayed_by_units():
    layers = nn.Sequential(
        nn.Linear(4, 6), LIF(torch.full((6,), 0.8), 0.4, learn_beta=True, learn_threshold=True), nn.Linear(6, 3),
        LIF(0.9, 0.3), SpikeCount(),
    ).double()  # fmt: skip
    x, y = torch.randn(7, 20, 4).double(), torch.randint(3, (20,))
    found = assert_parity(layers, lambda: F.cross_entropy(layers(x), y))
    assert any("lif_spikes" in name for name in local_operations(found))
    assert not any(each.tier.doubt() for each in found.values()), "what a kernel reads does not leave the tape"
