"""Losses on the CPU: vectors of samples count the starts of a row."""

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.simd import LANES, compiled, load, splat, store, where


def two_level_losses(lacking: Tensor, other: Tensor, starts: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.two_level_losses`."""
    samples = lacking.shape[1]
    lacking, other = (F.pad(values, (0, -samples % LANES)).contiguous() for values in (lacking, other))
    found = np.empty((len(lacking), shifts.shape[1], lacking.shape[1]))
    _score(lacking.numpy(), other.numpy(), starts.numpy(), shifts.numpy(), found)
    return torch.from_numpy(found)[..., :samples].contiguous()


@compiled(parallel=True)
def _score(
    lacking: NDArray[np.float64],
    other: NDArray[np.float64],
    starts: NDArray[np.float64],
    shifts: NDArray[np.float64],
    found: NDArray[np.float64],
) -> None:
    for unit in prange(len(lacking)):
        _score_unit(lacking, other, starts, shifts, found, unit)


@compiled()
def _score_unit(
    lacking: NDArray[np.float64],
    other: NDArray[np.float64],
    starts: NDArray[np.float64],
    shifts: NDArray[np.float64],
    found: NDArray[np.float64],
    unit: int,
) -> None:
    samples, count = lacking.shape[1], starts.shape[1]
    zero, one, every = splat(0.0), splat(1.0), splat(float(count))
    for block in range(0, samples, LANES):
        lacks, costs = load(lacking, unit * samples + block), load(other, unit * samples + block)
        was_high = zero >= lacks
        for place in range(shifts.shape[1]):
            left, is_high = lacks - splat(shifts[unit, place]), zero
            for start in range(count):
                is_high = is_high + where(splat(starts[unit, start]) >= left, one, zero)
            changed = where(was_high, every - is_high, is_high)
            store(found, (unit * shifts.shape[1] + place) * samples + block, costs * changed)
