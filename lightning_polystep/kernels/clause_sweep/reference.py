"""Sweeps in plain torch: groups of variables that share no clause at once, all costs anew before each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_polystep.kernels.flip_costs.reference import flip_costs

if TYPE_CHECKING:
    from lightning_polystep.kernels.clause_sweep import ClauseLayout, Draws, SweepState

_STRIDE, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def clause_sweep(_values: Tensor, state: SweepState, layout: ClauseLayout, draws: Draws) -> None:
    """See :func:`lightning_polystep.kernels.clause_sweep`."""
    literals, starts, weights = (torch.from_numpy(each) for each in (layout.literals, layout.starts, layout.weights))
    order, values = torch.from_numpy(layout.order).long(), state.values
    for sweep in draws.sweeps:
        key = _mixed(torch.tensor(draws.seed) ^ _mixed(torch.tensor(sweep)))
        begin = 0
        for end in layout.ends.tolist():
            group, begin = order[begin:end], end
            costs = flip_costs(values, literals, starts, weights)[group]
            level = _shifted(_mixed(key + group * _STRIDE), 11).double() * 2.0**-53
            relative = costs.double() / draws.temperature
            if draws.metropolis:
                chance = torch.exp(-relative.clamp(min=0))
            else:
                chance = 1 / (1 + torch.exp(relative.clamp(max=700)))
            flipped = group[level < draws.share * chance]
            values[flipped] = ~values[flipped]
            state.flips += len(flipped)
    found = flip_costs(values, literals, starts, weights)
    state.costs[:] = found[:-1].numpy()
    state.weight = int(found[-1])
    layout.count(values.numpy())
    hard = layout.offsets[: layout.hard]
    state.violated = int((layout.records[hard] == 0).sum())


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shift to the right as numbers without a sign."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)


def _mixed(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 as SplitMix64 does."""
    mixed = numbers + _STRIDE
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return mixed ^ _shifted(mixed, 31)
