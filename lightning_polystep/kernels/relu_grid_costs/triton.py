"""Costs on a grid on CUDA: rows of the grids' changes go through the layers behind; the rest is plain torch."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.triton import loss_changes
from lightning_polystep.kernels.relu_grid_costs.reference import Limits, interpolate, lay_grid
from lightning_polystep.kernels.sweep.triton import sum_over_samples

_ENTRIES = 2**22  # (unit, sample, candidate) at once, 60 bytes or so each; more units than fit take turns


def relu_grid_costs(
    preactivation: Tensor,
    shifts: Tensor,
    behind: Behind,
    floor: float,
    nodes: int,
    limits: Limits,
    *head_arguments: object,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.relu_grid_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    (samples, units), count = preactivation.shape, shifts.shape[-1]
    costs = [shifts.new_empty((0, count), dtype=torch.float64)]
    if not count or not samples:
        return costs[0].new_zeros(units, count)
    at_once = max(1, _ENTRIES // (samples * count))
    for start in range(0, units, at_once):
        part = slice(start, start + at_once)
        x = preactivation[:, part].T[..., None]
        gain, lower, upper, offset = limits.of_units(part, units)
        lower, upper = lower.expand(x.shape[:2]), upper.expand(x.shape[:2])
        moved = x + gain[..., None] * (shifts[part] if shifts.ndim == 3 else shifts)
        changes = moved.clamp(min=floor) - x.clamp(min=floor)
        grid = lay_grid(changes, lower, upper, nodes)
        unit, sample, _ = place = grid.evaluated(nodes).nonzero(as_tuple=True)
        table = torch.zeros(*x.shape[:2], nodes + 1, dtype=torch.float64, device=x.device)
        if len(sample):
            table[place] = loss_changes(behind, head, sample, start + unit, grid.changes(nodes)[place])
        table += offset[:, None].double()
        costs.append(sum_over_samples(interpolate(grid, changes, table, lower, upper).contiguous()))
    return torch.cat(costs)
