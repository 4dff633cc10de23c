"""Arguments of the kernels, and what they have to cost according to networks that run candidate by candidate."""

import itertools
import os
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

from lightning_polystep import kernels
from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_outcome_dictionary

LOSSES = ("cross_entropy_count", "cross_entropy_membrane", "mse_rate")
NEURONS = list(itertools.product(("zero", "subtract", "none"), (False, True), ("ge", "gt")))


class Sizes(NamedTuple):
    samples: int = 5
    steps: int = 8
    classes: int = 4
    candidates: int = 6
    units: int = 3
    hidden: tuple[int, ...] = ()  # neurons of the layers between the candidates' and the readout


def run(implementation, name, arguments):
    with mock.patch.dict(os.environ, POLYSTEP_KERNELS=implementation):
        return getattr(kernels, name)(*arguments)


def values(*shape, dtype, dyadic=False, spread=0.5, mean=0.1):
    """Normal numbers, or multiples of 1/8 between -1 and 1, with which no sum of a test rounds and ties are common."""
    if dyadic:
        return torch.randint(-8, 9, shape).to(dtype) / 8
    return torch.randn(shape, dtype=dtype) * spread + mean


def readout_case(sizes, loss, neuron, dtype, dyadic=False, dense=False):
    """The arguments that all operators end with."""
    n, t, c, *_ = sizes
    beta = torch.tensor([0.5, 0.75] * c)[:c].to(dtype) if dyadic else torch.rand(c, dtype=dtype)
    threshold = torch.tensor([1.0, 0.5, 0.75] * c)[:c].to(dtype) if dyadic else 0.3 + torch.rand(c, dtype=dtype)
    target = torch.rand(n, c).softmax(1) if dense else torch.randint(c, (n,))
    smoothing = 0.0 if loss == "mse_rate" else 0.125
    return values(n, t, c, dtype=dtype, dyadic=dyadic), beta, threshold, target, loss, *neuron, smoothing


def lif_constants(size, dtype, dyadic):
    """Beta and threshold of a hidden layer."""
    beta = torch.tensor([0.5, 0.75] * size)[:size] if dyadic else torch.rand(size)
    threshold = torch.tensor([0.5, 1.0, 0.25] * size)[:size]
    return beta.to(dtype), threshold.to(dtype)


def hidden_neurons(sizes, neuron, dtype, dyadic=False):
    """Beta and threshold per hidden neuron, and their outcomes."""
    beta, threshold = lif_constants(sizes.units, dtype, dyadic)
    mechanism, delay, spike_on = neuron
    options = {"reset_mechanism": mechanism, "reset_delay": delay, "spike_on": spike_on}
    return beta, threshold, options, lif_outcome_dictionary(beta, threshold, sizes.steps, dtype=dtype, **options)


def case(name, sizes, loss, neuron, dtype=torch.float64, dyadic=False, dense=False):
    """Arguments of an operator."""
    tail = readout_case(sizes, loss, neuron, dtype, dyadic, dense)
    n, t, c, v, u, _ = sizes
    if name == "lif_direct_costs":
        return values(n, t, v, dtype=dtype, dyadic=dyadic, spread=0.3), *tail
    if name == "lif_train_costs":
        return train_case(sizes, neuron, dtype, tail, dyadic=dyadic)
    *_, (boundaries, trains) = hidden_neurons(sizes, neuron, dtype, dyadic)
    shifts = values(n, v, dtype=dtype, dyadic=dyadic)
    weight = values(c, u, dtype=dtype, dyadic=dyadic)
    return values(n, u, dtype=dtype, dyadic=dyadic), shifts, boundaries, trains, weight, *tail


def train_case(sizes, neuron, dtype, tail, dyadic=False, constant=False):
    """Shifts, hidden layers whose currents need not follow from each other, and the readout."""
    n, t, c, v, u, hidden = sizes
    layers = (u, *hidden)
    length = 1 if constant else t
    shifts = values(n, length, v, dtype=dtype, dyadic=dyadic)
    currents = [values(n, t if layer else length, h, dtype=dtype, dyadic=dyadic) for layer, h in enumerate(layers)]
    betas, thresholds = zip(*(lif_constants(h, dtype, dyadic) for h in layers), strict=True)
    weights = [values(b, a, dtype=dtype, dyadic=dyadic) for a, b in zip(layers, (*hidden, c), strict=True)]
    return shifts, currents, list(betas), list(thresholds), weights, *tail, *neuron


def network_losses(currents, beta, threshold, target, loss, *neuron_and_smoothing):
    """Loss of each sample from currents (T, N, C), by the loss functions of torch."""
    mechanism, delay, spike_on, smoothing = neuron_and_smoothing
    options = {"reset_mechanism": mechanism, "reset_delay": delay, "spike_on": spike_on}
    spikes, membrane = lif(currents, beta, threshold, return_membrane=True, **options)
    if loss == "mse_rate":
        dense = target if target.is_floating_point() else F.one_hot(target, currents.shape[-1])
        rates = spikes.double().mean(0)
        return F.mse_loss(rates, dense.double(), reduction="none").mean(1)
    logits = (spikes.sum(0) if loss == "cross_entropy_count" else membrane[-1]).double()
    target = target.double() if target.is_floating_point() else target
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
