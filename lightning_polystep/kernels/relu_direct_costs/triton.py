"""Direct costs of ReLU and linear units on CUDA: rows of changes that are not zero go through the layers behind."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.triton import loss_changes
from lightning_polystep.kernels.sweep.triton import sum_over_samples

_ENTRIES = 2**22  # (unit, sample, candidate) at once, 40 bytes or so each; more units than fit take turns


def relu_direct_costs(
    preactivation: Tensor, shifts: Tensor, behind: Behind, floor: float, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.relu_direct_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    (samples, units), count = preactivation.shape, shifts.shape[-1]
    at_once = max(1, _ENTRIES // max(1, samples * count))
    costs = [shifts.new_empty((0, count), dtype=torch.float64)]
    for start in range(0, units, at_once):
        part = slice(start, start + at_once)
        x = preactivation[:, part].T[..., None]
        change = (x + (shifts[part] if shifts.ndim == 3 else shifts)).clamp(min=floor) - x.clamp(min=floor)
        unit, sample, _ = place = change.nonzero(as_tuple=True)
        table = torch.zeros(change.shape, dtype=torch.float64, device=change.device)
        if len(sample):
            table[place] = loss_changes(behind, head, sample, start + unit, change[place])
        costs.append(sum_over_samples(table))
    return torch.cat(costs)
