"""Recurrent neurons against snnTorch, spike for spike, and against plain ones where nothing is fed back."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, lif, rlif

MECHANISMS = ("zero", "subtract", "none")
CONFIGURATIONS = list(itertools.product(MECHANISMS, (False, True), ("ge", "gt")))


@given(
    reset_mechanism=st.sampled_from(MECHANISMS),
    reset_delay=st.booleans(),
    beta=st.floats(-0.25, 1.25, width=32),
    threshold=st.floats(0, 3, width=32),
    ties=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_snntorch_spike_for_spike(reset_mechanism, reset_delay, beta, threshold, ties, seed):
    snntorch = pytest.importorskip("snntorch")
    generator = torch.Generator().manual_seed(seed)
    current = torch.randn(20, 2, 5, generator=generator) + 0.3
    if ties:
        current, beta, threshold = (current * 8).round() / 8, round(beta * 2) / 2, round(threshold * 4) / 4
    theirs = snntorch.RLeaky(
        beta,
        linear_features=5,
        threshold=threshold,
        surrogate_disable=True,
        reset_mechanism=reset_mechanism,
        reset_delay=reset_delay,
    )
    spike = membrane = torch.zeros(2, 5)
    spikes, membranes = [], []
    with torch.no_grad():
        theirs.recurrent.weight.copy_(torch.randint(-8, 9, (5, 5), generator=generator) / 8)
        theirs.recurrent.bias.copy_(torch.randint(-2, 3, (5,), generator=generator) / 8)
        for incoming in current:
            spike, membrane = theirs(incoming, spike, membrane)
            spikes.append(spike)
            membranes.append(membrane)

    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": "gt"}
    ours = rlif(current, theirs.recurrent, beta, threshold, return_membrane=True, **options)
    assert torch.equal(ours.spikes, torch.stack(spikes))
    assert torch.equal(ours.membrane, torch.stack(membranes))


@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_without_feedback_it_is_lif(reset_mechanism, reset_delay, spike_on):
    current = torch.randint(-6, 17, (12, 64)) / 8
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    same = torch.equal(rlif(current, torch.zeros_like, 0.5, **options), lif(current, 0.5, **options))
    assert same == (not (reset_delay and reset_mechanism == "zero"))


def test_feedback_arrives_one_step_later():
    spikes = rlif(torch.tensor([[1.0, 0.0, 0.0]] + [[0.0] * 3] * 3), lambda s: s.roll(1, -1), 0.5)
    assert spikes.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_convolutions_feed_back_too():
    recurrent, current = nn.Conv2d(3, 3, 3, padding=1), torch.randn(4, 2, 3, 5, 5) + 0.5
    assert rlif(current, recurrent, torch.rand(3, 1, 1)).shape == current.shape


@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_vmap_over_the_feedback_equals_the_loop(reset_mechanism, reset_delay, spike_on):
    """With dyadic numbers, so that the order of a matrix product's sum does not matter."""
    current, weights = torch.randint(-6, 17, (8, 2, 4)) / 8, torch.randint(-8, 9, (3, 4, 4)) / 8

    def run(weight):
        options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
        return rlif(current, lambda spikes: spikes @ weight, 0.5, **options)

    assert torch.equal(torch.func.vmap(run)(weights), torch.stack([run(weight) for weight in weights]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    current = torch.randint(-3, 8, (4, 32)) / 8
    single = rlif(current, lambda spikes: spikes.flip(-1) / 2, 0.5)
    other = rlif(current.to(dtype), lambda spikes: spikes.flip(-1) / 2, 0.5)
    assert other.dtype == dtype
    assert torch.equal(other.float(), single)


def test_backward_raises_or_gives_zeros():
    recurrent, current = nn.Linear(2, 2), torch.ones(3, 2, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match="hidden"):
        rlif(current, recurrent, 0.9, name="hidden").sum().backward()
    rlif(current, recurrent, 0.9, on_backward="zero").sum().backward()
    assert torch.equal(current.grad, torch.zeros(3, 2))
    assert torch.equal(recurrent.weight.grad, torch.zeros(2, 2))


def test_feedback_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"^hidden: recurrent maps spikes of shape .*[.]$"):
        rlif(torch.ones(3, 2, 2), lambda spikes: spikes.sum(-1), 0.9, name="hidden")
