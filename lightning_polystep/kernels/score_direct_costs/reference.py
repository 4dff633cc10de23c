"""Costs by brute force: the loss of all scores for every candidate of every class."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Scores, losses


def score_direct_costs(shifts: Tensor, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.score_direct_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    before, classes = losses(head, head.scores), head.scores.shape[1]
    rows = []
    for c, shift in enumerate(shifts.expand(classes, -1, -1)):
        candidates = head.scores.expand(shifts.shape[-1], -1, -1).clone()
        candidates[..., c] += shift.T
        rows.append((losses(head, candidates) - before).sum(-1))
    return torch.stack(rows)
