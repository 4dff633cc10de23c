"""Loss changes on the CPU: each change is carried through the layers behind, where most units notice nothing."""

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.cpu import Network, loss_change, make_wave, pack
from lightning_polystep.kernels.simd import compiled

# Samples that share a thread's buffers; each loads the layers behind it once for all units.
_SAMPLES_AT_ONCE = 16


def unit_change_losses(changes: Tensor, behind: Behind, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.unit_change_losses`."""
    found = np.zeros(changes.shape)
    if found.size:
        _score(changes.contiguous().numpy(), pack(behind, Scores(*head_arguments)), found)  # type: ignore[arg-type]
    return torch.from_numpy(found)


@compiled(parallel=True)
def _score(changes: NDArray[Any], network: Network, found: NDArray[np.float64]) -> None:
    samples = len(found)
    for part in prange((samples + _SAMPLES_AT_ONCE - 1) // _SAMPLES_AT_ONCE):
        start = part * _SAMPLES_AT_ONCE
        _score_samples(changes, network, found, start, min(start + _SAMPLES_AT_ONCE, samples))


@compiled()
def _score_samples(changes: NDArray[Any], network: Network, found: NDArray[np.float64], start: int, stop: int) -> None:
    wave = make_wave(network)
    for sample in range(start, stop):
        for unit in range(found.shape[1]):
            change = changes[sample, unit]
            if change != 0:
                found[sample, unit] = loss_change(network, sample, unit, change, wave)
