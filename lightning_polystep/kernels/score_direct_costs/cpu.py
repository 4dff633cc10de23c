"""Direct costs of scores on the CPU: vectors of candidates.

A thread owns whole costs and goes through the samples in their order, so that the sums have one order.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.elementary import exp, log1p
from lightning_polystep.kernels.feedforward import Scores, target_weights
from lightning_polystep.kernels.one_logit import one_logit
from lightning_polystep.kernels.simd import LANES, borrowing, compiled, load, splat, store, to_float64, where

# Candidates of one task at most: their costs stay in the first-level cache.
_TILE = 16 * LANES


class Candidates(NamedTuple):
    """The arguments of the operator, V padded to whole vectors, and the loss as a function of one score."""

    shifts: NDArray[Any]  # (S, N, V), with S = 1 or C
    scores: NDArray[Any]  # (N, C)
    by_entropy: bool
    rest: NDArray[np.float64]  # (N, C), as are the others: see OneLogit
    weight: NDArray[np.float64]
    total: NDArray[np.float64]
    base: NDArray[np.float64]


def score_direct_costs(shifts: Tensor, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.score_direct_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    (samples, classes), count = head.scores.shape, shifts.shape[-1]
    shifts = shifts.reshape(-1, samples, count)
    scores, weight = head.scores.double(), target_weights(head)
    by_entropy = head.loss == "cross_entropy"
    unused = torch.zeros(1, 1, dtype=torch.float64)
    pieces = one_logit(scores, weight) if by_entropy else (unused, weight, unused, (scores - weight) ** 2)
    candidates = Candidates(
        (F.pad(shifts, (0, -count % LANES)) if count % LANES else shifts.contiguous()).numpy(),
        head.scores.contiguous().numpy(),
        by_entropy,
        *(piece.contiguous().numpy() for piece in pieces),
    )
    costs = np.zeros((classes, count + -count % LANES))
    _score(candidates, costs)
    return torch.from_numpy(costs)[:, :count].contiguous()


@compiled(parallel=True)
def _score(candidates: Candidates, costs: NDArray[np.float64]) -> None:
    classes, count = costs.shape
    tiles = (count + _TILE - 1) // _TILE
    for task in prange(classes * tiles):
        start = task % tiles * _TILE
        _score_tile(candidates, costs, task // tiles, start, min(start + _TILE, count))


@compiled()
def _score_tile(candidates: Candidates, costs: NDArray[np.float64], c: int, start: int, stop: int) -> None:
    _, samples, width = candidates.shifts.shape
    own, row = min(c, len(candidates.shifts) - 1), c * width
    for sample in range(samples):
        for v in range(start, stop, LANES):
            shift = load(candidates.shifts, (own * samples + sample) * width + v)
            score = to_float64(splat(candidates.scores[sample, c]) + shift)
            if candidates.by_entropy:
                change = _entropy(candidates, sample, c, score)
            else:
                error = score - splat(candidates.weight[sample, c])
                change = error * error - splat(candidates.base[sample, c])
            store(costs, row + v, load(costs, row + v) + change)
    if not candidates.by_entropy:
        for v in range(start, stop):
            costs[c, v] /= candidates.scores.shape[1]


@borrowing
def _entropy(candidates: Candidates, sample: int, c: int, logit: Any) -> Any:
    # log(e^r + e^x) = max(r, x) + log(1 + e^-|r - x|), which neither overflows nor cancels.
    rest, weight = splat(candidates.rest[sample, c]), splat(candidates.weight[sample, c])
    larger = logit >= rest
    distance = where(larger, rest - logit, logit - rest)
    partition = where(larger, logit, rest) + log1p(exp(distance))
    return (splat(candidates.total[sample, 0]) * partition - weight * logit) - splat(candidates.base[sample, c])
