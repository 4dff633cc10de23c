"""Loss changes on CUDA: rows, each a change that is not zero, go through the layers behind."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.triton import loss_changes


def unit_change_losses(changes: Tensor, behind: Behind, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.unit_change_losses`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    sample, unit = place = changes.nonzero(as_tuple=True)
    found = torch.zeros(changes.shape, dtype=torch.float64, device=changes.device)
    if len(sample):
        found[place] = loss_changes(behind, head, sample, unit, changes[place])
    return found
