"""Two-state neurons against snnTorch, spike for spike, and against one-state neurons where they coincide."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import NonDifferentiableError, lif, synaptic

MECHANISMS = ("zero", "subtract", "none")
CONFIGURATIONS = list(itertools.product(MECHANISMS, (False, True), ("ge", "gt")))


@given(
    reset_mechanism=st.sampled_from(MECHANISMS),
    reset_delay=st.booleans(),
    alpha=st.floats(-0.25, 1.25, width=32),
    beta=st.floats(-0.25, 1.25, width=32),
    threshold=st.floats(0, 3, width=32),
    per_neuron=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_snntorch_spike_for_spike(reset_mechanism, reset_delay, alpha, beta, threshold, per_neuron, ties, seed):
    snntorch = pytest.importorskip("snntorch")
    generator = torch.Generator().manual_seed(seed)
    current = torch.randn(20, 2, 5, generator=generator) + 0.3
    if ties:
        current, threshold = (current * 8).round() / 8, round(threshold * 4) / 4
        alpha, beta = round(alpha * 2) / 2, round(beta * 2) / 2
    if per_neuron:
        alpha, beta, threshold = (c * torch.rand(5, generator=generator) for c in (alpha, beta, threshold))

    theirs = snntorch.Synaptic(
        alpha, beta, threshold, surrogate_disable=True, reset_mechanism=reset_mechanism, reset_delay=reset_delay
    )
    synapse = membrane = torch.zeros(2, 5)
    spikes, membranes = [], []
    for incoming in current:
        spike, synapse, membrane = theirs(incoming, synapse, membrane)
        spikes.append(spike)
        membranes.append(membrane)

    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": "gt"}
    ours = synaptic(current, alpha, beta, threshold, return_membrane=True, **options)
    assert torch.equal(ours.spikes, torch.stack(spikes))
    assert torch.equal(ours.membrane, torch.stack(membranes))


@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_is_lif_on_a_filtered_current(reset_mechanism, reset_delay, spike_on):
    """On a dyadic grid, where sums are exact; but for a delayed reset to zero, which drops a current here."""
    current = torch.randint(-3, 8, (8, 64)) / 8
    filtered, synapse = [], torch.zeros(64)
    for incoming in current:
        synapse = 0.5 * synapse + incoming
        filtered.append(synapse)
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    ours = synaptic(current, 0.5, 0.5, **options)
    assert 0.05 < ours.mean() < 0.95
    same = torch.equal(ours, lif(torch.stack(filtered), 0.5, **options))
    assert same == (not (reset_delay and reset_mechanism == "zero"))


def test_constants_per_channel():
    current = torch.rand(5, 2, 3, 4, 4)
    constants = torch.rand(3, 1, 1), torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    together = synaptic(current, *constants)
    for channel in range(3):
        alone = synaptic(current[:, :, channel], *(constant[channel].item() for constant in constants))
        assert torch.equal(together[:, :, channel], alone)


@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_vmap_equals_the_loop_bit_for_bit(reset_mechanism, reset_delay, spike_on):
    arguments = torch.randn(3, 8, 4) + 0.5, torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 4)

    def run(*values):
        options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
        return synaptic(*values, return_membrane=True, **options)

    together = torch.func.vmap(run)(*arguments)
    for candidate in range(3):
        alone = run(*(value[candidate] for value in arguments))
        assert torch.equal(together.spikes[candidate], alone.spikes)
        assert torch.equal(together.membrane[candidate], alone.membrane)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    current = torch.randint(-3, 8, (4, 32)) / 8
    single = synaptic(current, 0.5, 0.5)
    assert torch.equal(synaptic(current.to(dtype), 0.5, 0.5).float(), single)
    assert synaptic(current.to(dtype), torch.tensor(0.5), 0.5).dtype == dtype


@pytest.mark.parametrize("argument", ["current", "alpha", "beta", "threshold"])
def test_backward_raises_or_gives_zeros(argument):
    values = {"current": torch.ones(3, 2), "alpha": torch.rand(2), "beta": torch.rand(2), "threshold": torch.ones(2)}
    values[argument].requires_grad_()
    with pytest.raises(NonDifferentiableError, match="hidden"):
        synaptic(**values, name="hidden").sum().backward()
    synaptic(**values, on_backward="zero").sum().backward()
    assert torch.equal(values[argument].grad, torch.zeros_like(values[argument]))


def test_an_alpha_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^hidden: alpha of shape .*[.]$"):
        synaptic(torch.ones(3, 2), alpha=torch.ones(5), beta=0.9, name="hidden")
