"""Flip costs by gathering and adding up, on any device."""

import torch
from torch import Tensor


def flip_costs(values: Tensor, literals: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.flip_costs`."""
    variable, negated = (literals >> 1).long(), (literals & 1).bool()
    true = values[variable] ^ negated
    clause = torch.repeat_interleave(torch.arange(len(weights), device=values.device), starts.diff())
    count = torch.zeros_like(weights).index_add_(0, clause, true.long())
    breaks = true & (count[clause] == 1)
    makes = count[clause] == 0
    change = weights[clause] * (breaks.long() - makes.long())
    found = weights.new_zeros(len(values) + 1)
    found.index_add_(0, variable, change)
    found[-1] = torch.where(count == 0, weights, 0).sum()
    return found
