r"""Score every single flip of a layer's binary weights, from one number per sample and unit.

A flip of a weight that meets inputs of -1 and 1 shifts a pre-activation by :math:`\pm 2 s`, whichever weight it is. So
with :math:`T_{nj}^\pm` the loss change of sample n when unit j shifts by :math:`\pm 2 s`, averaged over the starts, and
q the codes before the flip,

.. math:: C_{jd} = \sum_{n : x_{nd} q_{jd} < 0} T_{nj}^+ + \sum_{n : x_{nd} q_{jd} > 0} T_{nj}^- ,

one product of matrices for all flips of a layer. Each cost is exact, as if the network had been run for it.

* :class:`HiddenFlipTier`: a unit that steps between two levels. :math:`T^\pm` is what the other level costs, times the
  share of starts from which the shift reaches it.
* :class:`ScoreFlipTier`: the last layer. One score shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_polystep.kernels import unit_change_losses
from lightning_polystep.kernels.feedforward import Scores, target_weights
from lightning_polystep.layers import QuantLinear
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.feedforward import effective_rows
from lightning_polystep.scoring.feedforward_tiers import FeedforwardTier
from lightning_polystep.scoring.stack import NotAStackError, Pass

# Loss changes are rounded to multiples of this. Sums of them in float64 are then exact, so that a cost does not depend
# on the order in which a product of matrices adds: on its threads, or on the rows that are scored in the same call.
_RESOLUTION = 2.0**-30


@dataclass
class FlipTier(FeedforwardTier):
    """Candidates of the subspace "flips", for binary weights on inputs of -1 and 1."""

    def _all_costs(self, proposal: Proposal, rows: Tensor, reach: Tensor, seen: Pass) -> Tensor:
        linear, inputs = self.layer.linear, self._inputs(seen).double()
        scale = _scale_of(linear, inputs)[rows].double()
        around = _around(proposal, reach)
        changes = self._changes(seen, rows, around)
        up, down, still = changes(2 * scale), changes(-2 * scale), changes(0 * scale).sum(1)
        middle, tilt = (up + down).sum(1)[:, None] / 2, ((up - down) / 2) @ inputs
        vertices = proposal.probe_radius * proposal.directions.reshape(-1, proposal.block.dim)
        place = vertices.abs().argmax(1)
        displacement = reach[:, None] * vertices.gather(1, place[:, None]).T
        costs = torch.empty(len(rows), len(vertices), dtype=torch.float64, device=rows.device)
        of_weight = place < inputs.shape[1]
        columns = place[of_weight]
        latent = linear.weight.detach()[rows][:, columns]
        flipped = effective_rows(linear, rows, latent + displacement[:, of_weight])
        flipped = (flipped - effective_rows(linear, rows, latent)).sign()
        costs[:, of_weight] = torch.where(flipped == 0, still[:, None], middle + flipped * tilt[:, columns])
        for vertex in (~of_weight).nonzero()[:, 0].tolist():
            costs[:, vertex] = changes(displacement[:, vertex].double()).sum(1)
        return costs / around.shape[1]

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor) -> Changes:
        """Return what tells how the loss of each sample changes when the pre-activations of some rows shift.

        Args:
            seen: The samples.
            rows: (R,).
            around: Shifts of the starts, (R, K), ascending.
        """
        raise NotImplementedError


class Changes(Protocol):
    """Sums over the starts of how the loss of each sample changes, all multiples of ``_RESOLUTION``."""

    def __call__(self, shift: Tensor) -> Tensor:
        """Return them for a shift of each row, (R,): (R, N), float64."""
        ...


@dataclass
class _TwoLevels:
    lacking: Tensor  # (R, N): what the pre-activation lacks to the boundary
    around: Tensor  # (R, K)
    lost: Tensor  # (R, N): change per start that falls below the boundary ...
    least: Tensor  # (R, N): ... and if none does

    def __call__(self, shift: Tensor) -> Tensor:
        below = torch.searchsorted(self.around, self.lacking - shift[:, None], out_int32=True)
        return below.to(torch.float64).mul_(self.lost).add_(self.least)


@dataclass
class HiddenFlipTier(FlipTier):
    """A unit that steps between two levels."""

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor) -> Changes:
        preactivation = seen.currents[self.index][:, rows]
        boundaries, levels = self._dictionary(self.index, preactivation)
        if boundaries.shape != (1, 1):
            raise NotAStackError(f"flips are scored where units have two levels, not {levels.shape[1]}")
        low, high = levels[0]
        is_high = preactivation >= boundaries[0]
        step = torch.where(is_high, low - high, high - low)
        other = _rounded(unit_change_losses(step, **self._behind(seen, rows))).T.contiguous()
        lacking = (boundaries[0].double() - preactivation.double()).T.contiguous()
        lost = torch.where(is_high.T, other, -other)
        return _TwoLevels(lacking, around, lost, torch.where(is_high.T, 0.0, around.shape[1] * other))


@dataclass
class _Squares:
    errors: Tensor  # (R, N)
    classes: int
    around: Tensor  # (R, K)

    def __call__(self, shift: Tensor) -> Tensor:
        shifts = self.around + shift[:, None]
        sums = 2 * shifts.sum(1, keepdim=True) * self.errors + shifts.square().sum(1, keepdim=True)
        return _rounded(sums / self.classes)


@dataclass
class _Entropy:
    probabilities: Tensor  # (R, N)
    weights: Tensor  # (R, N): the targets
    totals: Tensor  # (N,): their sums over the classes
    around: Tensor  # (R, K)

    def __call__(self, shift: Tensor) -> Tensor:
        shifts = self.around + shift[:, None]
        growth = torch.zeros_like(self.probabilities)
        # One score more by d makes the sum of exponentials 1 + p (exp(d) - 1) times as large.
        for factor in shifts.expm1().unbind(1):
            growth += torch.log1p(self.probabilities * factor[:, None])
        return _rounded(self.totals * growth - self.weights * shifts.sum(1, keepdim=True))


@dataclass
class ScoreFlipTier(FlipTier):
    """The last layer."""

    def _changes(self, seen: Pass, rows: Tensor, around: Tensor) -> Changes:
        scores = seen.scores.double()
        weights = target_weights(Scores(scores, seen.targets, self.stack.loss, self.stack.label_smoothing))
        if self.stack.loss == "mse":
            return _Squares((scores - weights).T[rows], scores.shape[1], around)
        return _Entropy(scores.softmax(1).T[rows], weights.T[rows], weights.sum(1), around)


def _around(proposal: Proposal, reach: Tensor) -> Tensor:
    """Return by how much the starts shift each row's pre-activation, ascending, (R, K), float64."""
    starts = reach.new_zeros(1) if proposal.starts is None else proposal.starts[:, -1]
    return (reach.double()[:, None] * starts.double()).sort(1).values


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
