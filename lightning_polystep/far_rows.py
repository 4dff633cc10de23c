"""Rows whose outputs are far from what the loss asks for take longer strides: a price of 200,000, a start at 0.

A step radius of 0.1 counts in pre-activations of about 1. What the readout of a regression has to reach may be any
number of those away; then its outputs move the same way at every step, which those of other layers never do for long.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of ordinary networks (digits, wine, spikes) no row's mean output goes the same way for so many steps in a row.
_PATIENCE = 32
# From then on the stride is doubled after so many more.
_PERIOD = 8
# What has gone beyond its aim comes back faster than it went.
_BACK = 0.25
_LONGEST = 2.0**40


class Strides(NamedTuple):
    """How far rows move, and for how long they have gone the same way.

    Args:
        lengths: Multiples of the normal stride, at least 1, shape (rows,).
        steady: For how many steps each row has gone up, or with a minus down, shape (rows,); from 40 on 32 again. Steps
            of a smaller radius count for less.
    """

    lengths: Tensor
    steady: Tensor

    def after(self, shifts: Tensor, share: float = 1.0) -> Strides:
        """Return strides after one more step.

        Args:
            shifts: How far the mean output of each row is moved, shape (rows,); 0 tells nothing.
            share: The radius of the step, as a share of the largest so far. Rows that go the same way for long because
                a schedule lets them go a little are not far from their aim.

        Example:
            >>> strides = Strides(torch.ones(2), torch.tensor([31.0, -31.0]))
            >>> strides.after(torch.tensor([0.1, 0.1]))
            Strides(lengths=tensor([2., 1.]), steady=tensor([32.,  1.]))
        """
        way = shifts.sign().to(self.steady)
        back = self.steady * way < 0
        known = torch.where(back | (way == 0), 0.0, self.steady)
        steady = known + share * way
        count = steady.abs()
        patience = torch.where(self.lengths > 1, _PERIOD, _PATIENCE)
        longer = (count >= patience) & (count // _PERIOD > known.abs() // _PERIOD)
        lengths = torch.where(longer, 2 * self.lengths, torch.where(back, _BACK * self.lengths, self.lengths))
        # Counted no further than numbers of 16 bits are exact.
        steady = torch.where(count >= _PATIENCE + _PERIOD, steady - _PERIOD * way, steady)
        return Strides(lengths.clamp(1.0, min(_LONGEST, torch.finfo(lengths.dtype).max / 4)), steady)
