r"""Propose to flip binary weights, one by one."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from torch import Tensor

from lightning_polystep.centring import bias_shifts
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.subspaces.protocol import Subspace, some_axes

# Biases over which a candidate's cost is averaged. In the fast tier they cost next to nothing, in others each costs as
# much as the candidate.
_STARTS = 16
# Of the means of inputs of -1 and 1: flips of weights whose inputs have the same mean are scored together.
_GRID = 0.25


class FlipSubspace(Subspace):
    r"""The signs of binary weights: each weight a particle of one dimension, whose vertices make it +1 and -1.

    With s the layer's mean weight scale, the latent weights are kept in :math:`[-s, s]`, and

    .. math:: B = 2 s I, \qquad w \pm 2 s \text{ has the sign } \pm 1 \text{ whatever } w \text{ is.}

    One of a weight's two vertices changes nothing; the other flips it, which shifts a pre-activation by
    :math:`2 s |x|`. A flip so small crosses the threshold of few samples, so it is scored at K = 16 biases around the
    row's own, whose root mean square is :math:`\rho` = ``probe_radius`` times that of the layer's pre-activations,
    :math:`q = s (\sum_d \operatorname{mean} x_d^2)^{1/2}`:

    .. math:: C_{iv} = \frac1K \sum_k L(w_i \pm 2 s e_d,\; b_i + \theta_k), \qquad
              \theta_k = \rho q\, \Phi^{-1}\!\left(\frac{k - u}{K}\right), \quad u \sim U(0, 1),

    with :math:`\Phi` the normal distribution function. A bias is a particle too, probed at the size of a flip. Without
    a bias there is one start, the row itself.

    On the inputs' mean :math:`m` (of -1 and 1; on a grid of 1/4) nothing is to change: a flip moves the bias by
    :math:`\mp 2 s m_d`, in a candidate and when it is made, so that it shifts a pre-activation by
    :math:`\pm 2 s (x_d - m_d)`. Otherwise the flips of all inputs that hardly ever change, such as dark pixels, are one
    and the same shift of the threshold, done hundreds of times at once. This takes the place of the mean that batch
    normalisation subtracts.

    ``lr`` is then the share of s by which a weight moves that matters as much as the others of its row do (with
    :math:`\varepsilon = 2`): a weight whose flip pays is drawn to its threshold, and the more steps it takes the
    farther it is from it, as in Bop.

    References:
        Helwegen et al. 2019, *Latent weights do not exist*, arXiv 1906.02107 (momentum decides when a weight flips);
        the softmax step is PolyStep, arXiv 2605.01928.
    """

    name = "flips"
    # A rotation would mix weights that are to be flipped one by one.
    is_rotated = True
    particle_dim = 1
    has_radius = False
    full_rank = sys.maxsize

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64: all weights, or a random choice of them when fewer are asked for."""
        del group, statistics
        return 2 * _unit(block) * some_axes(block.dim, rank, draw)

    def probe_radius(self, group: dict[str, Any]) -> float:
        """Return 1: a flip is as large as it is, and the group's radius is that of the starts."""
        del group
        return 1.0

    def starts(
        self, block: Block, group: dict[str, Any], draw: torch.Generator, statistics: InputStatistics | None = None
    ) -> Tensor | None:
        """Return the biases around a row's own at which it is scored, shape (K, D), float64."""
        if not block.has_bias:
            return None
        offset = torch.rand((), generator=draw, dtype=torch.float64).clamp(0.01, 0.99)
        shares = (torch.arange(_STARTS, dtype=torch.float64) + offset) / _STARTS
        starts = torch.zeros(_STARTS, block.dim, dtype=torch.float64)
        starts[:, -1] = group["probe_radius"] * _size(block, statistics) * torch.special.ndtri(shares)
        return starts

    def centre(self, block: Block, statistics: InputStatistics | None) -> Tensor | None:
        """Return the inputs' running mean m, (D - 1,), float64, on a grid, so that many flips shift alike."""
        if statistics is None or not block.has_bias:
            return None
        return (statistics.moment[:-1, -1] / _GRID).round() * _GRID

    def settle(self, proposal: Proposal, before: Tensor) -> None:
        """Keep the latent weights in [-s, s], from where one vertex each way reaches both signs; move the biases."""
        block, unit = proposal.block, _unit(proposal.block)
        weight = block.parameters[0].clamp_(-unit, unit)
        if proposal.centre is not None:
            site, rows = cast("QuantisedWeight", block.site), proposal.rows
            shifts = bias_shifts(site, rows, before[rows].flatten(1), weight[rows].flatten(1), proposal.centre)
            block.parameters[1].index_add_(0, rows, shifts)


def _unit(block: Block) -> float:
    """Return s; 1 for a block that is no layer."""
    scale = None if block.site is None else cast("QuantisedWeight", block.site).weight_scale
    return 1.0 if scale is None else float(scale.mean())


def _size(block: Block, statistics: InputStatistics | None) -> float:
    """Return q, the root mean square of pre-activations, as they are where signs and inputs have nothing in common.

    Rounded, because of scales such as the root of a sum of ones it is 1 but for the last bits of a float.
    """
    if statistics is None:
        return 1.0
    mean_square = float(statistics.moment.diagonal()[: len(statistics.moment) - block.has_bias].sum())
    size = float(f"{_unit(block) * max(0.0, mean_square) ** 0.5:.5g}")
    return size if size > 0 else 1.0
