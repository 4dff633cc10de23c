"""What all hard leaky neurons share: refusals, the time axis, what they return, and the order of late resets."""

from functools import partial

import pytest
import torch

from lightning_polystep.functional import LIFOutput, lif, rlif, synaptic
from lightning_polystep.functional.neurons import make_neurons, run_neurons

NEURONS = {
    "lif": lif,
    "synaptic": partial(synaptic, alpha=0.75),
    "rlif": partial(rlif, recurrent=lambda spikes: spikes.flip(-1) / 2),
}


@pytest.fixture(params=NEURONS.values(), ids=NEURONS.keys())
def neuron(request):
    return request.param


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, r"call \.float\(\)", {"current": torch.ones(3, 2, dtype=torch.int64)}),
        (TypeError, "floating point", {"current": torch.ones(3, 2, dtype=torch.complex64)}),
        (ValueError, "no time step", {"current": torch.ones(0, 2)}),
        (ValueError, "no time step", {"current": torch.tensor(1.0)}),
        (ValueError, "num_steps must be at least 1", {"num_steps": 0}),
        (ValueError, "reset_mechanism must be", {"reset_mechanism": "substract"}),
        (ValueError, "spike_on must be", {"spike_on": ">="}),
        (ValueError, "on_backward must be", {"on_backward": "surrogate"}),
        (ValueError, "beta of shape", {"beta": torch.ones(5)}),
        (ValueError, "threshold of shape", {"threshold": torch.ones(3, 2)}),
    ],
)
def test_bad_input_is_refused_in_one_sentence(neuron, error, message, changes):
    with pytest.raises(error, match=f"^hidden: .*{message}.*[.]$"):
        neuron(**{"current": torch.ones(3, 2), "beta": 0.9, "name": "hidden", **changes})


def test_constant_current_equals_the_same_current_repeated(neuron):
    current = torch.randn(6, 4)
    assert torch.equal(neuron(current, beta=0.9, num_steps=7), neuron(current.expand(7, 6, 4), beta=0.9))


def test_membranes_come_only_on_request(neuron):
    current = torch.randn(5, 3)
    spikes, output = neuron(current, beta=0.9), neuron(current, beta=0.9, return_membrane=True)
    assert isinstance(spikes, torch.Tensor)
    assert isinstance(output, LIFOutput)
    assert torch.equal(spikes, output.spikes)
    assert output.membrane.shape == current.shape


def test_without_autograd_nothing_is_different(neuron):
    current = torch.randn(8, 4) + 0.5
    expected = neuron(current, beta=0.9, return_membrane=True)
    with torch.no_grad():
        output = neuron(current, beta=0.9, return_membrane=True)
    assert 0 < expected.spikes.mean() < 1
    assert all(torch.equal(*pair) for pair in zip(output, expected, strict=True))


@pytest.mark.parametrize(("drops_current", "membrane"), [(True, [1.0, 0.0, 0.25]), (False, [1.0, 0.5, 0.5])])
def test_a_late_reset_to_zero_drops_the_current_or_spares_it(drops_current, membrane):
    current = torch.tensor([[1.0], [0.5], [0.25]])
    neurons = make_neurons(current, 0.5, 1.0, None, "zero", True, "ge", "raise", name="hidden")
    output = run_neurons(neurons, True, late_reset_drops_current=drops_current)
    assert output.spikes.T.tolist() == [[1.0, 0.0, 0.0]]
    assert output.membrane.T.tolist() == [membrane]
