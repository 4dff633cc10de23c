"""Hard LIF neurons against snnTorch, against a plain loop over floats, and against themselves under vmap."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import NonDifferentiableError, lif

MECHANISMS = ("zero", "subtract", "none")
CONFIGURATIONS = list(itertools.product(MECHANISMS, (False, True), ("ge", "gt")))


def _reference_lif(current, beta, threshold, reset_mechanism, reset_delay, spike_on):
    """One neuron, one float at a time, written from snnTorch's documentation; ``current`` is a list of floats."""

    def fires(membrane):
        return membrane >= threshold if spike_on == "ge" else membrane > threshold

    def reset(membrane):
        return {"zero": 0.0, "subtract": membrane - threshold, "none": membrane}[reset_mechanism]

    spikes, membranes = [], []
    membrane, late = 0.0, False
    for incoming in current:
        if late and reset_mechanism == "zero":
            membrane = 0.0
        membrane = beta * membrane + incoming
        if late and reset_mechanism == "subtract":
            membrane -= threshold
        spike = fires(membrane)
        if reset_delay:
            late = spike
        else:
            if spike and not late:
                membrane = reset(membrane)
            elif late and not spike and reset_mechanism == "subtract":
                membrane += threshold
            late = reset_mechanism == "subtract" and fires(membrane)
        spikes.append(float(spike))
        membranes.append(membrane)
    return spikes, membranes


def dyadic(*shape):
    """Multiples of 1/8, with which float32 makes no rounding error over a few steps and ties are common."""
    return torch.randint(-6, 17, shape) / 8


@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_equals_the_plain_loop(reset_mechanism, reset_delay, spike_on):
    current = dyadic(12, 64)
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    output = lif(current, 0.5, 1.0, return_membrane=True, **options)
    assert 0.1 < output.spikes.mean() < 0.9
    for neuron in range(current.shape[1]):
        spikes, membrane = _reference_lif(current[:, neuron].tolist(), 0.5, 1.0, **options)
        assert output.spikes[:, neuron].tolist() == spikes
        assert output.membrane[:, neuron].tolist() == membrane


@given(
    reset_mechanism=st.sampled_from(MECHANISMS),
    reset_delay=st.booleans(),
    beta=st.floats(-0.25, 1.25, width=32),
    threshold=st.floats(0, 3, width=32),
    per_neuron=st.booleans(),
    gain=st.sampled_from((0.3, 1.0, 4.0)),
    ties=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_snntorch_spike_for_spike(reset_mechanism, reset_delay, beta, threshold, per_neuron, gain, ties, seed):
    snntorch = pytest.importorskip("snntorch")
    generator = torch.Generator().manual_seed(seed)
    current = gain * torch.randn(20, 2, 5, generator=generator) + gain / 2
    if ties:
        current, beta, threshold = (current * 8).round() / 8, round(beta * 2) / 2, round(threshold * 4) / 4
    if per_neuron:
        beta = beta * torch.rand(5, generator=generator)
        threshold = threshold * torch.rand(5, generator=generator)

    theirs = snntorch.Leaky(
        beta, threshold, surrogate_disable=True, reset_mechanism=reset_mechanism, reset_delay=reset_delay
    )
    membrane = torch.zeros(2, 5)
    spikes, membranes = [], []
    for incoming in current:
        spike, membrane = theirs(incoming, membrane)
        spikes.append(spike)
        membranes.append(membrane)

    ours = lif(
        current,
        beta,
        threshold,
        reset_mechanism=reset_mechanism,
        reset_delay=reset_delay,
        spike_on="gt",
        return_membrane=True,
    )
    assert torch.equal(ours.spikes, torch.stack(spikes))
    assert torch.equal(ours.membrane, torch.stack(membranes))


def test_ge_and_gt_differ_exactly_at_ties():
    current = torch.tensor([[0.25, 0.5, 0.75, 1.0, 1.5]])
    ge, gt = (lif(current, beta=1.0, num_steps=4, spike_on=on)[:, 0].T.tolist() for on in ("ge", "gt"))
    assert ge == [[0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert gt == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]]


def test_beta_is_clamped_to_the_unit_interval():
    current = torch.randn(9, 5) + 0.5
    assert torch.equal(lif(current, 1.7), lif(current, 1.0))
    assert torch.equal(lif(current, torch.tensor(-0.3)), lif(current, 0.0))


def test_beta_and_threshold_per_channel():
    current, beta, threshold = torch.rand(5, 2, 3, 4, 4), torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    together = lif(current, beta, threshold)
    for channel in range(3):
        alone = lif(current[:, :, channel], beta[channel].item(), threshold[channel].item())
        assert torch.equal(together[:, :, channel], alone)


def test_inputs_are_left_as_they_were():
    current, beta, threshold = torch.randn(5, 3), torch.rand(3), torch.rand(3)
    copies = [tensor.clone() for tensor in (current, beta, threshold)]
    lif(current, beta, threshold, reset_mechanism="subtract", return_membrane=True)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((current, beta, threshold), copies, strict=True))


@pytest.mark.parametrize("batched", list(itertools.product((0, None), repeat=3))[:-1])
@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_vmap_equals_the_loop_bit_for_bit(reset_mechanism, reset_delay, spike_on, batched):
    arguments = [
        value if dim == 0 else value[0]
        for value, dim in zip((torch.randn(3, 8, 4) + 0.5, torch.rand(3, 4), torch.rand(3, 4)), batched, strict=True)
    ]

    def run(current, beta, threshold):
        return lif(
            current,
            beta,
            threshold,
            reset_mechanism=reset_mechanism,
            reset_delay=reset_delay,
            spike_on=spike_on,
            return_membrane=True,
        )

    together = torch.func.vmap(run, in_dims=batched)(*arguments)
    for candidate in range(3):
        alone = run(*(value[candidate] if dim == 0 else value for value, dim in zip(arguments, batched, strict=True)))
        assert torch.equal(together.spikes[candidate], alone.spikes)
        assert torch.equal(together.membrane[candidate], alone.membrane)


@pytest.mark.parametrize("batched", list(itertools.product((0, None), repeat=3)))
@pytest.mark.parametrize(("reset_mechanism", "reset_delay", "spike_on"), CONFIGURATIONS)
def test_without_autograd_nothing_is_different(reset_mechanism, reset_delay, spike_on, batched):
    """Steps are then written into one tensor instead of being stacked, under vmap as well."""
    values = torch.randn(3, 8, 4) + 0.5, torch.rand(3, 4), torch.rand(3, 4)
    arguments = [value if dim == 0 else value[0] for value, dim in zip(values, batched, strict=True)]
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}

    def run(current, beta, threshold):
        return lif(current, beta, threshold, return_membrane=True, **options)

    if 0 in batched:
        run = torch.func.vmap(run, in_dims=batched)
    expected = run(*arguments)
    with torch.no_grad():
        output = run(*arguments)
    assert torch.equal(output.spikes, expected.spikes)
    assert torch.equal(output.membrane, expected.membrane)
    assert output.spikes.is_contiguous() == expected.spikes.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reset_mechanism", MECHANISMS)
def test_other_float_types(dtype, reset_mechanism):
    current = dyadic(4, 32)
    single = lif(current, torch.tensor(0.5), 1.0, reset_mechanism=reset_mechanism, return_membrane=True)
    other = lif(current.to(dtype), torch.tensor(0.5), 1.0, reset_mechanism=reset_mechanism, return_membrane=True)
    assert other.spikes.dtype == other.membrane.dtype == dtype
    assert torch.equal(other.spikes.float(), single.spikes)
    assert torch.equal(other.membrane.float(), single.membrane)


def test_float_and_tensor_constants_agree_in_every_type():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        current = torch.randn(30, 16).to(dtype)
        floats = lif(current, 0.9, 0.3, return_membrane=True)
        tensors = lif(
            current, torch.tensor(0.9, dtype=dtype), torch.tensor(0.3, dtype=dtype).expand(16), return_membrane=True
        )
        assert torch.equal(floats.membrane, tensors.membrane)


@pytest.mark.parametrize("argument", ["current", "beta", "threshold"])
def test_backward_raises_or_gives_zeros(argument):
    values = {"current": torch.ones(3, 2), "beta": torch.full((2,), 0.5), "threshold": torch.ones(2)}
    values[argument].requires_grad_()
    with pytest.raises(NonDifferentiableError, match="hidden"):
        lif(**values, name="hidden").sum().backward()
    lif(**values, on_backward="zero").sum().backward()
    assert torch.equal(values[argument].grad, torch.zeros_like(values[argument]))


def test_the_membrane_has_a_gradient_where_no_spike_is_in_its_way():
    current = torch.tensor([[0.25, 2.0], [0.25, 0.25]], requires_grad=True)
    output = lif(current, 0.5, on_backward="zero", return_membrane=True)
    output.membrane[-1].sum().backward()
    assert torch.equal(current.grad, torch.tensor([[0.5, 0.0], [1.0, 1.0]]))
