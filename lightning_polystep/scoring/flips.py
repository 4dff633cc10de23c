r"""Score every single flip of a layer's binary weights, from a few numbers per sample and unit.

A flip to the sign f of a weight that meets inputs of -1 and 1 shifts a pre-activation by :math:`2 f s (x_{nd} - m_d)`,
where m is the centre (:func:`~lightning_polystep.centring.bias_shifts`), or 0. So with :math:`T_{nj}(\delta)` the loss
change of sample n when unit j shifts by :math:`\delta`, averaged over the starts,

.. math:: C_{jd} = \sum_{n : x_{nd} = 1} T_{nj}(2 f s (1 - m_d)) + \sum_{n : x_{nd} = -1} T_{nj}(-2 f s (1 + m_d)) ,

two products of matrices for all flips of weights that have the same m, which is why m is on a coarse grid. Each cost is
exact, as if the network had been run for it.

* :class:`HiddenFlipTier`: a unit that steps between two levels. T is what the other level costs, times the share of
  starts from which the shift reaches it.
* :class:`ScoreFlipTier`: the last layer. One score shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from lightning_polystep.kernels import two_level_losses, unit_change_losses
from lightning_polystep.layers import QuantLinear
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.feedforward import effective_rows
from lightning_polystep.scoring.feedforward_tiers import FeedforwardTier
from lightning_polystep.scoring.stack import NotAStackError, Pass

# Loss changes are rounded to multiples of this. Sums of them in float64 are then exact, so that a cost does not depend
# on the order in which a product of matrices adds: on its threads, or on the rows that are scored in the same call.
_RESOLUTION = 2.0**-30
# Of which logarithms are taken together.
_FACTORS = 4


@dataclass
class FlipTier(FeedforwardTier):
    """Candidates of the subspace "flips", for binary weights on inputs of -1 and 1."""

    takes_starts = True

    def _all_costs(self, proposal: Proposal, rows: Tensor, reach: Tensor, seen: Pass) -> Tensor:
        linear, inputs = self.layer.linear, self._inputs(seen).double()
        scale = _scale_of(linear, inputs)[rows].double()
        around, centre = _around(proposal, reach), _centre(proposal, inputs)
        vertices = proposal.probe_radius * proposal.directions.reshape(-1, proposal.block.dim)
        place = vertices.abs().argmax(1)
        steps = vertices.gather(1, place[:, None])[:, 0]
        displacement = reach[:, None] * steps
        of_weight = place < inputs.shape[1]
        widest = torch.cat([2 * scale[:, None] * (1 + centre.abs().max()), displacement[:, ~of_weight].abs()], 1)
        changes = self._changes(seen, rows, around, widest.amax(1))
        alone = torch.cat([torch.zeros_like(scale)[:, None], displacement[:, ~of_weight].double()], 1)
        costs = around.new_empty(len(rows), len(vertices))
        costs[:, of_weight], costs[:, ~of_weight] = changes(alone).sum(2).split([1, alone.shape[1] - 1], 1)
        # Rows are gathered several times as fast as columns.
        latent, by_input = linear.weight.detach()[rows], inputs.T.contiguous()
        for mean, sign in product(centre[place[of_weight]].unique().tolist(), (-1, 1)):
            alike = (of_weight & (steps.sign() == sign)).nonzero()[:, 0]
            alike = alike[centre[place[alike]] == mean]
            columns = place[alike]
            flipped = effective_rows(linear, rows, latent[:, columns] + displacement[:, alike])
            flipped = flipped != effective_rows(linear, rows, latent[:, columns])
            # On samples with an input of 1, and of -1.
            shifts = 2 * sign * scale[:, None] * (scale.new_tensor([1.0, -1.0]) - mean)
            up, down = changes(shifts).unbind(1)
            found = (up + down).sum(1)[:, None] / 2 + ((up - down) / 2) @ by_input[columns].T
            costs[:, alike] = torch.where(flipped, found, costs[:, alike])
        return costs / around.shape[1]

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor, farthest: Tensor) -> Changes:
        """Return what tells how the loss of each sample changes when the pre-activations of some rows shift.

        Args:
            seen: The samples.
            rows: (R,).
            around: Shifts of the starts, (R, K), ascending.
            farthest: The largest shift that will be asked for, (R,).
        """
        raise NotImplementedError


class Changes(Protocol):
    """Sums over the starts of how the loss of each sample changes, all multiples of ``_RESOLUTION``."""

    def __call__(self, shifts: Tensor) -> Tensor:
        """Return them for some shifts of each row, (R, P): (R, P, N), float64."""
        ...


@dataclass
class HiddenFlipTier(FlipTier):
    """A unit that steps between two levels."""

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor, farthest: Tensor) -> Changes:
        preactivation = seen.currents[self.index][:, rows]
        boundaries, levels = self._dictionary(self.index, preactivation)
        if boundaries.shape != (1, 1):
            raise NotAStackError(f"flips are scored where units have two levels, not {levels.shape[1]}")
        low, high = levels[0]
        is_high = preactivation >= boundaries[0]
        lacking = (boundaries[0].double() - preactivation.double()).T.contiguous()
        nearest, widest = around[:, :1] - farthest[:, None], around[:, -1:] + farthest[:, None]
        # About half of the units are so far from their boundary that no candidate carries them over it from any start.
        stays = torch.where(is_high.T, lacking <= nearest, lacking > widest).T
        step = torch.where(is_high, low - high, high - low).masked_fill(stays, 0.0)
        other = _rounded(unit_change_losses(step, **self._behind(seen, rows))).T.contiguous()
        return partial(two_level_losses, lacking, other, around)


@dataclass
class _Squares:
    errors: Tensor  # (R, N)
    classes: int
    around: Tensor  # (R, K)

    def __call__(self, shifts: Tensor) -> Tensor:
        moved = self.around[:, None] + shifts[..., None]
        sums = 2 * moved.sum(2, keepdim=True) * self.errors[:, None] + moved.square().sum(2, keepdim=True)
        return _rounded(sums / self.classes)


@dataclass
class _Entropy:
    probabilities: Tensor  # (R, N)
    weights: Tensor  # (R, N): the targets
    totals: Tensor  # (N,): their sums over the classes
    around: Tensor  # (R, K)

    def __call__(self, shifts: Tensor) -> Tensor:
        moved = self.around[:, None] + shifts[..., None]
        growth = torch.zeros(())
        # One score more by d makes the sum of exponentials 1 + p (exp(d) - 1) times as large. A logarithm takes longer
        # than the product of a few such numbers, which cannot overflow.
        for some in moved.expm1().split(_FACTORS, 2):
            factors = (1 + self.probabilities[:, None] * factor[..., None] for factor in some.unbind(2))
            growth = growth + reduce(torch.mul, factors).log_()
        return _rounded(self.totals * growth - self.weights[:, None] * moved.sum(2, keepdim=True))


@dataclass
class ScoreFlipTier(FlipTier):
    """The last layer."""

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor, farthest: Tensor) -> Changes:
        del farthest
        scores = seen.scores.double()
        weights = seen.targets
        if self.stack.loss == "mse":
            return _Squares((scores - weights).T[rows], scores.shape[1], around)
        return _Entropy(scores.softmax(1).T[rows], weights.T[rows], weights.sum(1), around)


def _around(proposal: Proposal, reach: Tensor) -> Tensor:
    """Return by how much the starts shift each row's pre-activation, ascending, (R, K), float64."""
    starts = reach.new_zeros(1) if proposal.starts is None else proposal.starts[:, -1]
    return (reach.double()[:, None] * starts.double()).sort(1).values


def _centre(proposal: Proposal, inputs: Tensor) -> Tensor:
    """Return what is taken from each input where its weight flips, (D,), float64."""
    return inputs.new_zeros(inputs.shape[1]) if proposal.centre is None else proposal.centre.double()


def _rounded(changes: Tensor) -> Tensor:
    return (changes / _RESOLUTION).round_().mul_(_RESOLUTION)


def _scale_of(linear: torch.nn.Linear, inputs: Tensor) -> Tensor:
    """Return the scale of each unit's binary weights, (H,).

    Raises:
        NotAStackError: When flips are not what :class:`FlipTier` takes them for.
    """
    if not isinstance(linear, QuantLinear) or linear.weight_format != "binary" or linear.weight_scale is None:
        raise NotAStackError("flips are of binary weights")
    if not bool((inputs.abs() == 1).all()):
        raise NotAStackError("flips are scored where all inputs are -1 or 1")
    return linear.weight_scale.expand(linear.out_features)
