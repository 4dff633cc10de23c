"""Loss changes by brute force: every unit's change goes through the layers behind, all of which are evaluated."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores, losses, scores_behind


def unit_change_losses(changes: Tensor, behind: Behind, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.unit_change_losses`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    before = losses(head, head.scores)
    found = changes.new_empty(changes.shape, dtype=torch.float64)
    for unit in range(changes.shape[1]):
        found[:, unit] = losses(head, scores_behind(behind, head.scores, unit, changes[:, unit])) - before
    return found
