"""Spikes on the CPU: a vector of neurons runs through all steps before the next one starts."""

from typing import Any

import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.readout import fire_at
from lightning_polystep.kernels.readout.cpu import reset_mode, step
from lightning_polystep.kernels.simd import LANES, borrowing, compiled, element, load, splat, store, where


def lif_spikes(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    num_steps: int,
    reset_mechanism: str,
    reset_delay: bool,
    spike_on: str,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_spikes`."""
    count = current.shape[1]
    missing = max(0, LANES - count)
    if missing:  # the last vector ends with the last neuron, so there have to be as many as lanes
        beta, threshold = (F.pad(value, (0, missing)) if len(value) > 1 else value for value in (beta, threshold))
        current = F.pad(current, (0, missing))
    constants = (value.contiguous().numpy() for value in (beta.clamp(0, 1), fire_at(threshold, spike_on), threshold))
    spikes = current.new_empty(num_steps, count + missing)
    _run(current.contiguous().numpy(), *constants, reset_mode(reset_mechanism, reset_delay), spikes.numpy())
    return spikes[:, :count].contiguous()


@compiled(parallel=True)
def _run(
    currents: NDArray[Any],
    beta: NDArray[Any],
    fire_at: NDArray[Any],
    level: NDArray[Any],
    mode: int,
    spikes: NDArray[Any],
) -> None:
    count = spikes.shape[1]
    for vector in prange((count + LANES - 1) // LANES):
        _run_vector(currents, beta, fire_at, level, mode, spikes, min(vector * LANES, count - LANES))


@borrowing
def _run_vector(
    currents: NDArray[Any],
    beta: NDArray[Any],
    fire_at: NDArray[Any],
    level: NDArray[Any],
    mode: int,
    spikes: NDArray[Any],
    start: int,
) -> None:
    steps, count = spikes.shape
    stride = count if len(currents) > 1 else 0
    leak = load(beta, start) if len(beta) > 1 else splat(element(beta, 0))
    first = load(fire_at, start) if len(fire_at) > 1 else splat(element(fire_at, 0))
    taken = load(level, start) if len(level) > 1 else splat(element(level, 0))
    zero, one = splat(spikes.dtype.type(0)), splat(spikes.dtype.type(1))
    membrane = zero
    for t in range(steps):
        membrane, spike = step(membrane, load(currents, t * stride + start), leak, first, taken, zero, mode)
        store(spikes, t * count + start, where(spike, one, zero))
