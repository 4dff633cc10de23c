"""Costs on a grid in plain torch: the grid's changes go through the layers behind, all of which are evaluated."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores, losses, scores_behind

# Nodes are no closer than this, the smallest number that float32 holds in full: a subnormal distance may round to much
# less than it should be, and the grid then have more nodes than there is room for.
SMALLEST_STEP = 2.0**-126


class Limits(NamedTuple):
    """What a unit makes of its shifts on a sample, and which of its candidates count; one number may stand for all.

    Args:
        gain: What multiplies the shifts, (N, U).
        lower: Changes below it cost nothing, (N, U).
        upper: Changes above it cost nothing, (N, U).
        offset: What the others cost more, (N,).
    """

    gain: Tensor
    lower: Tensor
    upper: Tensor
    offset: Tensor

    @classmethod
    def of(
        cls, like: Tensor, gain: Tensor | None, lower: Tensor | None, upper: Tensor | None, offset: Tensor | None
    ) -> Limits:
        """Return what is given, and what leaves all as it is in the place of what is not.

        Args:
            like: Has the dtype and the device.
            gain: See above, as the others.
            lower: See above.
            upper: See above.
            offset: See above.
        """
        return cls(
            like.new_ones(1, 1) if gain is None else gain,
            like.new_full((1, 1), -math.inf) if lower is None else lower,
            like.new_full((1, 1), math.inf) if upper is None else upper,
            like.new_zeros(1) if offset is None else offset,
        )

    def of_units(self, part: slice, units: int) -> Limits:
        """Return those of some units, with the units first, (U, N).

        Args:
            part: Of the units.
            units: Of all.
        """
        gain, lower, upper = (each.expand(len(each), units)[:, part].T for each in self[:3])
        return Limits(gain, lower, upper, self.offset)


class Grid(NamedTuple):
    """The grids of several units, each for one sample.

    Args:
        anchor: A node, (...): 0 where the grid spans it, else the lowest.
        step: Distance of two nodes, (...), above 0.
        below: Nodes below the anchor, (...), a whole number in the dtype of the step.
        last: Nodes but one, likewise; below 0 where no candidate counts.
    """

    anchor: Tensor
    step: Tensor
    below: Tensor
    last: Tensor

    def changes(self, nodes: int) -> Tensor:
        """Return the changes at so many nodes and one, (..., nodes + 1); not all need be of the grid."""
        node = torch.arange(nodes + 1).to(self.step)
        return self.anchor[..., None] + (node - self.below[..., None]) * self.step[..., None]

    def evaluated(self, nodes: int) -> Tensor:
        """Return which of them are to be evaluated: those of the grid where something changes."""
        node = torch.arange(nodes + 1).to(self.step)
        return (node <= self.last[..., None]) & (self.changes(nodes) != 0)


def lay_grid(changes: Tensor, lower: Tensor, upper: Tensor, nodes: int) -> Grid:
    """Lay a grid over those of the candidates' changes that count.

    Args:
        changes: Of the unit's value, (..., V).
        lower: Changes below it do not count, (...).
        upper: Changes above it do not count, (...).
        nodes: Points of the grid, about.
    """
    lowest = torch.maximum(changes.amin(-1).clamp(max=0), lower)
    highest = torch.minimum(changes.amax(-1).clamp(min=0), upper)
    anchor = torch.where((lowest <= 0) & (highest >= 0), 0.0, lowest)
    step = (highest - lowest) / (nodes - 2)
    step = torch.where(step >= SMALLEST_STEP, step, 1.0)
    below = (-((lowest - anchor) / step)).ceil()
    last = below + ((highest - anchor) / step).ceil()
    return Grid(anchor, step, below, torch.where(lowest <= highest, last, -1.0))


def interpolate(grid: Grid, changes: Tensor, table: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the losses of candidates from those of the nodes.

    Args:
        grid: The grid.
        changes: Of the unit's value, (..., V).
        table: Change of the loss at each node, (..., nodes + 1), float64.
        lower: Changes below it cost nothing, (...).
        upper: Changes above it cost nothing, (...).

    Returns:
        (..., V), float64.
    """
    at_nodes = table.to(changes.dtype)
    slopes = at_nodes.diff(dim=-1, append=at_nodes[..., :1])
    slopes = torch.where(torch.arange(table.shape[-1]).to(grid.last) < grid.last[..., None], slopes, 0.0)
    place = (changes - grid.anchor[..., None]) / grid.step[..., None] + grid.below[..., None]
    counts = (changes >= lower[..., None]) & (changes <= upper[..., None])
    place = torch.where(counts, place, 0.0)
    node = place.trunc()
    index = node.long()
    loss = at_nodes.gather(-1, index) + (place - node) * slopes.gather(-1, index)
    return torch.where(counts, loss, 0.0).double()


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
    before = losses(head, head.scores)
    costs = preactivation.new_zeros((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
    if not costs.numel() or not len(preactivation):
        return costs
    gains, lowers, uppers, offset = limits.of_units(slice(None), len(costs))
    for unit, shift in enumerate(shifts.expand(len(costs), -1, -1)):
        x = preactivation[:, unit, None]
        lower, upper = (each[unit].expand(len(x)) for each in (lowers, uppers))
        changes = (x + gains[unit].expand(len(x))[:, None] * shift).clamp(min=floor) - x.clamp(min=floor)
        grid = lay_grid(changes, lower, upper, nodes)
        after = losses(head, scores_behind(behind, head.scores, unit, grid.changes(nodes).T)).T
        table = torch.where(grid.evaluated(nodes), after - before[:, None], 0.0) + offset.expand(len(x))[:, None]
        costs[unit] = interpolate(grid, changes, table, lower, upper).sum(0)
    return costs
