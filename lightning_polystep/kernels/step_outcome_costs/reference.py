"""Costs by brute force: every candidate's level goes through the layers behind, all of which are evaluated."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores, losses, scores_behind, step_function


def step_outcome_costs(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, levels: Tensor, behind: Behind, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.step_outcome_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    before = losses(head, head.scores)
    costs = preactivation.new_empty((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
    for unit, shift in enumerate(shifts.expand(len(costs), -1, -1)):
        row = [min(unit, len(boundaries) - 1)]
        x = preactivation[:, unit]
        level = step_function((x + shift.T)[..., None], boundaries[row], levels[row])
        change = level - step_function(x[:, None], boundaries[row], levels[row])
        scores = scores_behind(behind, head.scores, unit, change[..., 0])
        costs[unit] = (losses(head, scores) - before).sum(-1)
    return costs
