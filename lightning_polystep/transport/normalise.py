r"""Costs without a unit: centred per particle, divided by the spread of their row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.transport.vertices import sum_over_vertices

# A row that spreads less than this share of its block gets no signal worth following.
FLAT_SHARE = 0.02
# How many times less than usual costs differ before they move a row less, so that trainings of a few steps lose little;
# and by how much that counts at the most: one bad batch must not stop a row for long.
LEAST_UNUSUAL, MOST_UNUSUAL = 1.5, 10.0
# Relative error of a loss summed in float32: two of its units in the last place.
LOSS_ROUNDING = 2 * torch.finfo(torch.float32).eps


class Normalised(NamedTuple):
    """Costs that transports take, and the spreads that they were divided by.

    Args:
        costs: Shape (rows, particles per row, m), float64; infinite where the loss was not finite.
        spread: Standard deviation sigma of the centred costs over the block, in units of the loss.
        row_spread: The same of each row, shape (rows,).
    """

    costs: Tensor
    spread: Tensor
    row_spread: Tensor


def normalise(costs: Tensor, usual: Tensor | None = None) -> Normalised:
    r"""Centre costs per particle and divide them by the standard deviation :math:`\sigma_i` of their row.

    .. math:: \hat C_{iv} = (C_{iv} - \bar C_i) / \max(\sigma_i, u_i / 1.5)

    A temperature then has no unit, and a quiet unit learns as fast as a loud one; with one deviation for the whole
    block, output neurons stayed silent for good in most runs. Spreads below 2 % of the block's, or below the rounding
    of a float32 loss, are counted as that, so that noise is not taken for a signal. Non-finite costs do not count.

    Args:
        costs: C, shape (rows, particles per row, m), float64; lower is better.
        usual: What rows spread lately, u, shape (rows,): a batch that says little of a row, because nearly all of its
            samples are learnt, moves it little. None for 0.

    Example:
        >>> normalise(torch.tensor([[[1.0, 3.0]], [[10.0, float("nan")]]])).costs.tolist()
        [[[-1.0, 1.0]], [[0.0, inf]]]
    """
    finite = torch.isfinite(costs)
    count = sum_over_vertices(finite.to(torch.int64)).clamp(min=1)
    mean = sum_over_vertices(torch.where(finite, costs, 0.0)) / count
    centred = torch.where(finite, costs - mean, 0.0)
    squares, counts = centred.square().sum((1, 2)), finite.sum((1, 2)).clamp(min=1)
    row_spread = (squares / counts).sqrt()
    spread = (squares.sum() / counts.sum()).sqrt()
    rounding = LOSS_ROUNDING * mean.abs().mean()
    unit = torch.maximum(row_spread, torch.maximum(FLAT_SHARE * spread, rounding))
    if usual is not None:
        unit = torch.maximum(unit, torch.minimum(usual / LEAST_UNUSUAL, MOST_UNUSUAL * unit))
    unit = torch.where(unit > 0, unit, 1.0)[:, None, None]
    return Normalised(torch.where(finite, centred / unit, math.inf), spread, row_spread)


def usual_spread(before: Tensor, now: Tensor, memory: float) -> Tensor:
    r"""Return what the costs of rows usually spread, after one more step: at most ten times what they do now.

    .. math:: u_i \leftarrow \min\left(\sqrt{\gamma u_i^2 + (1 - \gamma) \sigma_i^2}, 10 \sigma_i\right)

    Args:
        before: What they did before it, u, shape (rows,); 0 before the first step.
        now: What they spread in this step, :math:`\sigma`, shape (rows,); 0 tells nothing.
        memory: :math:`\gamma`.

    Example:
        >>> usual_spread(torch.tensor([1.0, 1e9]), torch.tensor([7.0, 1.0]), 0.5).tolist()
        [5.0, 10.0]
    """
    after = (memory * before.square() + (1 - memory) * now.square()).sqrt()
    return torch.where(now > 0, torch.minimum(after, MOST_UNUSUAL * now), before)
