"""Tiers of feed-forward networks give every candidate the loss of running the network again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import Heaviside, QuantActivation, QuantLinear, Sign, Staircase, StepFunction
from lightning_polystep.scoring import stack_tier
from lightning_polystep.scoring.feedforward_tiers import FineStepTier, LinearTier, ReLUTier, ScoreTier, StepOutcomeTier
from lightning_polystep.scoring.loop import LoopTier
from tests.helpers.parity import Case, Stacked, losses_of, prepare, reference_losses, sites

EXACT = {"rtol": 1e-10, "atol": 1e-11}
CLASSES = 3
# More than rounding, and how much a loss without a step moves by that at the most.
NUDGE, MOVED_BY_A_NUDGE = 1e-11, 1e-6
ACTIVATIONS = {
    "staircase": lambda: Staircase(5),
    "rounded": lambda: Staircase(3, rounding="round", squash="tanh"),
    "sign": Sign,
    "heaviside": Heaviside,
    "int4": lambda: QuantActivation(4, scale=0.25),
    "int8": lambda: QuantActivation(8, scale=0.02),
    "signed": lambda: QuantActivation(3, signed=True, scale=0.5),
    "relu": nn.ReLU,
}
WEIGHTS = ["plain", "float", "int8", "ternary", "binary"]


def linear(draw, features_in, features_out):
    weights, bias = draw(st.sampled_from(WEIGHTS)), draw(st.booleans())
    if weights == "plain":
        return nn.Linear(features_in, features_out, bias)
    quantiser = QuantActivation(3, signed=True, scale=0.3) if draw(st.booleans()) else None
    granularity = draw(st.sampled_from(["per_channel", "per_tensor"]))
    layer = QuantLinear(
        features_in, features_out, bias, weight_format=weights, granularity=granularity, input_quant=quantiser
    )
    return layer.double()


@st.composite
def cases(draw):
    """A network of one to four layers with its batch."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    samples, features = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    sizes = [features, *draw(st.lists(st.sampled_from([1, 2, 7]), max_size=3))]
    layers = [nn.Flatten()]
    for place in range(len(sizes) - 1):
        name = draw(st.sampled_from([*ACTIVATIONS, "none"]))
        activation = [] if name == "none" else [ACTIVATIONS[name]()]
        layers += [linear(draw, sizes[place], sizes[place + 1]), *activation]
    layers.append(linear(draw, sizes[-1], CLASSES))
    for layer in layers:
        if type(layer) is nn.Linear:
            with torch.no_grad():
                layer.weight.mul_(draw(st.sampled_from([1e-3, 1.0, 3.0, 100.0])))
    inputs = torch.randn(samples, 1, features)
    if draw(st.booleans()):
        inputs[...] = inputs[:1]
    if draw(st.booleans()):
        module, targets = Stacked(*layers, criterion=nn.MSELoss()), torch.randn(samples, CLASSES)
    else:
        module, targets = Stacked(*layers, label_smoothing=0.1), torch.randint(CLASSES, (samples,))
    return Case("random", lambda: module, lambda: (inputs, targets), {})


def ties(prepared, proposal):
    """Candidates in which some step function stands so near to a step that rounding may decide it.

    Fractions that a network adds up, as those of a staircase, cancel in one order of summation and not in another; the
    plan counts such candidates when it compares a tier with the loop.
    """
    shifted = []
    for nudge in (-NUDGE, NUDGE):
        handles = [
            module.register_forward_pre_hook(lambda _, args, nudge=nudge: (args[0] + nudge,))
            for module in prepared.module.modules()
            if isinstance(module, StepFunction)
        ]
        shifted.append(losses_of(LoopTier(), prepared, proposal))
        for handle in handles:
            handle.remove()
    return (shifted[0] - shifted[1]).abs() > MOVED_BY_A_NUDGE


@settings(max_examples=60)
@given(
    case=cases(),
    probe_radius=st.sampled_from([0.3, 3.0]),
    polytope=st.sampled_from(["simplex", "orthoplex"]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_stack_parameters_and_the_loop_agree(case, probe_radius, polytope, cut):
    prepared = prepare(case, probe_radius=probe_radius, polytope=polytope)
    for name, proposal in sites(prepared).items():
        expected, settled = losses_of(LoopTier(), prepared, proposal), ~ties(prepared, proposal)
        on_tape = losses_of(prepared.tape_tier(proposal.block.name), prepared, proposal)
        torch.testing.assert_close(on_tape[settled], expected[settled], **EXACT)
        tier = prepared.stack_tier(name)
        losses = losses_of(tier, prepared, proposal)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses[settled], expected[settled], **EXACT)
        start, stop = sorted(round(place * proposal.candidates) for place in cut)
        if start < stop:
            part = losses_of(tier, prepared, proposal, start, stop)
            torch.testing.assert_close(part, losses[start:stop], **EXACT)


def test_a_row_of_whole_numbers_that_sums_to_zero_steps_as_the_layer_does():
    """Multiples of a scale cancel to the bit, so that a tie at 0 is decided as the network decides it."""
    torch.manual_seed(0)
    hidden = QuantLinear(64, 16, bias=False, weight_format="binary", dtype=torch.float64)
    module = Stacked(Heaviside(), hidden, Heaviside(), nn.Linear(16, CLASSES).double())
    case = Case("cancels", lambda: module, lambda: (torch.randn(64, 64), torch.randint(CLASSES, (64,))), {})
    prepared = prepare(case, probe_radius=3.0)
    proposal = prepared.proposals["network.1"]
    assert ties(prepared, proposal).any()
    expected = losses_of(LoopTier(), prepared, proposal)
    torch.testing.assert_close(losses_of(prepared.stack_tier("network.1"), prepared, proposal), expected, **EXACT)


def test_a_layer_without_an_activation_has_its_tier():
    prepared = prepare(Case("linear", lambda: Stacked(nn.Linear(4, 6), nn.Linear(6, 3)), batch, {}))
    assert type(prepared.stack_tier("network.0")) is LinearTier


def deep(*, quantised=False):
    first = QuantLinear(4, 6) if quantised else nn.Linear(4, 6)
    return Stacked(first, Staircase(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def batch():
    return torch.randn(24, 4), torch.randint(3, (24,))


def test_each_layer_has_its_tier():
    prepared = prepare(Case("deep", deep, batch, {}))
    tiers = {name: type(prepared.stack_tier(name)) for name in prepared.proposals}
    assert tiers == {"network.0": StepOutcomeTier, "network.2": ReLUTier, "network.4": ScoreTier}


def integer():
    def layer(features_in, features_out, scale):
        quantiser = QuantActivation(8, scale=scale)
        return QuantLinear(features_in, features_out, input_quant=quantiser, integer=True).double()

    return Stacked(layer(4, 6, 0.011), nn.ReLU(), layer(6, 5, 0.013), nn.ReLU(), layer(5, 3, 0.007))


def test_units_of_an_integer_network_have_many_levels():
    prepared = prepare(Case("integer", integer, batch, {}))
    tiers = {name: prepared.stack_tier(name) for name in prepared.proposals}
    kinds = {name: (type(tier), tier.default_candidates) for name, tier in tiers.items()}
    fine = FineStepTier, ReLUTier.default_candidates
    assert kinds == {"network.0": fine, "network.2": fine, "network.4": (ScoreTier, None)}


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), probe_radius=st.sampled_from([0.03, 0.3, 3.0]))
def test_an_integer_network_and_the_loop_agree(seed, probe_radius):
    def build():
        torch.manual_seed(seed)
        return integer()

    prepared = prepare(Case("integer", build, batch, {}), probe_radius=probe_radius)
    for name, proposal in prepared.proposals.items():
        expected = losses_of(LoopTier(), prepared, proposal)
        assert len(expected.unique()) > 1
        torch.testing.assert_close(losses_of(prepared.stack_tier(name), prepared, proposal), expected, **EXACT)


@pytest.mark.parametrize("quantised", [False, True])
def test_candidates_are_taken_in_parts(monkeypatch, quantised):
    prepared = prepare(Case("deep", lambda: deep(quantised=quantised), batch, {}))
    expected = {name: reference_losses(prepared, proposal) for name, proposal in prepared.proposals.items()}
    monkeypatch.setattr(stack_tier, "SHIFT_BYTES", 1)
    monkeypatch.setattr("lightning_polystep.scoring.feedforward_tiers.SHIFT_BYTES", 1)
    for name, proposal in prepared.proposals.items():
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, expected[name], **EXACT)


def test_a_scale_that_was_calibrated_anew_is_followed():
    """The table of levels is kept between steps, and must not outlive what it was made of."""
    quantiser = QuantActivation(3, scale=0.25)
    module = Stacked(nn.Linear(4, 6), quantiser, nn.Linear(6, 3))
    prepared = prepare(Case("scaled", lambda: module, batch, {}))
    tier, proposal = prepared.stack_tier("network.0"), prepared.proposals["network.0"]
    first = losses_of(tier, prepared, proposal)
    quantiser.scale.fill_(1.0)
    again = prepare(Case("scaled", lambda: module, batch, {}))
    tier.capture = again.capture
    losses = losses_of(tier, again, proposal)
    torch.testing.assert_close(losses, losses_of(LoopTier(), again, proposal), **EXACT)
    assert not torch.allclose(losses, first)


def test_a_scale_before_the_next_layers_own_quantiser_is_followed():
    """That quantiser decides the levels, but where each of them begins follows what comes before it."""
    before, own = QuantActivation(3, scale=0.25), QuantActivation(3, scale=0.25)
    module = Stacked(nn.Linear(4, 6), before, QuantLinear(6, 3, input_quant=own))
    prepared = prepare(Case("scaled", lambda: module, batch, {}))
    tier, proposal = prepared.stack_tier("network.0"), prepared.proposals["network.0"]
    first = losses_of(tier, prepared, proposal)
    before.scale.fill_(1.0)
    again = prepare(Case("scaled", lambda: module, batch, {}))
    tier.capture = again.capture
    losses = losses_of(tier, again, proposal)
    torch.testing.assert_close(losses, losses_of(LoopTier(), again, proposal), **EXACT)
    assert not torch.allclose(losses, first)


@pytest.mark.filterwarnings("ignore:At pass .* their frozen scales")
@pytest.mark.parametrize("activation", [Staircase, Sign, nn.ReLU], ids=lambda a: a.__name__)
@pytest.mark.parametrize("weights", ["float", "int8", "binary"])
def test_a_feedforward_network_learns(activation, weights):
    torch.manual_seed(0)
    hidden = QuantLinear(16, 16, weight_format=weights)
    module = Stacked(nn.Linear(4, 16), activation(), hidden, activation(), nn.Linear(16, 2))
    x = torch.randn(256, 4)
    y = (x[:, 0] + x[:, 1] > 0).long()
    engine = Engine(module, PolyStep(module.parameters(), lr=0.3, seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module.network(x), y))) for _ in range(25)]
    assert all(assignment.tier.name in {"outcome", "incremental"} for assignment in engine.plan.assignments)
    assert losses[-1] < 0.5 * losses[0]
