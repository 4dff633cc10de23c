"""Costs by brute force: every candidate's change goes through the layers behind, all of which are evaluated."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores, losses, scores_behind


def relu_direct_costs(
    preactivation: Tensor, shifts: Tensor, behind: Behind, floor: float, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.relu_direct_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    before = losses(head, head.scores)
    costs = preactivation.new_empty((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
    for unit, shift in enumerate(shifts.expand(len(costs), -1, -1)):
        x = preactivation[:, unit]
        scores = scores_behind(behind, head.scores, unit, (x + shift.T).clamp(min=floor) - x.clamp(min=floor))
        costs[unit] = (losses(head, scores) - before).sum(-1)
    return costs
