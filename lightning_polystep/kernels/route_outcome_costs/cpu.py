"""Choices on the CPU: a loop over candidates, of which those that keep the incumbent's choice cost nothing.

A thread owns whole rows of the costs and goes through the samples in their order, so that the sums have one order.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.simd import borrowing, compiled


def route_outcome_costs(logits: Tensor, changes: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.route_outcome_costs`."""
    costs = np.zeros((weight.shape[1], changes.shape[-1]))
    if costs.size:
        changes = changes.reshape(-1, *changes.shape[-2:]).contiguous()
        _score(
            logits.contiguous().numpy(),
            changes.numpy(),
            weight.T.contiguous().numpy(),
            losses.contiguous().numpy(),
            costs,
        )
    return torch.from_numpy(costs)


@compiled(parallel=True)
def _score(
    logits: NDArray[Any],
    changes: NDArray[Any],
    weight: NDArray[Any],
    losses: NDArray[np.float64],
    costs: NDArray[np.float64],
) -> None:
    for unit in prange(len(costs)):
        _score_unit(logits, changes, weight, losses, costs, np.int64(unit))


@borrowing
def _score_unit(
    logits: NDArray[Any],
    changes: NDArray[Any],
    weight: NDArray[Any],
    losses: NDArray[np.float64],
    costs: NDArray[np.float64],
    unit: int,
) -> None:
    own = min(unit, len(changes) - 1)
    for sample in range(len(logits)):
        here = _choice(logits, sample, weight, unit, changes.dtype.type(0))
        for v in range(costs.shape[1]):
            change = changes[own, sample, v]
            if change != 0:
                choice = _choice(logits, sample, weight, unit, change)
                costs[unit, v] += losses[sample, choice] - losses[sample, here]


@borrowing
def _choice(logits: NDArray[Any], sample: int, weight: NDArray[Any], unit: int, change: Any) -> int:
    choice, best = 0, logits[sample, 0] + change * weight[unit, 0]
    for outcome in range(1, logits.shape[1]):
        logit = logits[sample, outcome] + change * weight[unit, outcome]
        choice = outcome if logit > best else choice
        best = max(best, logit)
    return choice
