r"""Propose in the span of a layer's own inputs: the default, because other directions cannot change the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.input_units import own_units
from lightning_polystep.particles import Block, InputStatistics, Loudness
from lightning_polystep.polytopes import haar_frame
from lightning_polystep.subspaces.protocol import Subspace

# Directions that vary less than this share of the second strongest carry noise rather than signal: on MNIST, leaving
# them in cost a point of validation accuracy at the same training loss, and ten times more cost two. The strongest is
# mostly the mean of the inputs, against which what tells samples apart may be small: behind a staircase, a share of
# the strongest left one direction of 129.
SPAN_FLOOR = 1e-2
# Of inputs in units of their own the floor is lower by this factor: there a weak direction is more often two columns
# that nearly agree than noise, and what first weights do along it is not small: on diabetes, unscaled, it was most of
# the loss of a linear model.
_OWN_SHARE = 0.1
# A moment in float32 is no more exact than this, relative to the strongest direction.
_ROUNDING_FLOOR = 1e-6
# The basis is taken anew when the moment has moved by more than this. The moment of pixels does so in the first ten
# batches only (an eigh of 785 x 785 takes as long as half a step), that of the spikes behind every ten steps or so.
_MOST_DRIFT = 0.03
# Root mean square of pre-activations above which a row is probed wider, if that of the inputs is as large.
_LOUD = 10.0


class InputSubspace(Subspace):
    r"""The eigenbasis of a site's input second moment, partially whitened.

    With :math:`G = X^T X / N = U \Lambda U^T` the second moment of the site's inputs (the constant 1 of the bias
    included) and K eigenvalues above ``span_floor`` times the second largest,

    .. math:: B = s\, U_K \Lambda_K^{-\alpha/2} Q, \qquad
              s = \left( \tfrac1K \operatorname{tr} \Lambda_K^{1-\alpha} \right)^{-1/2},

    where Q (K x k) is a Haar-random frame, fresh each step, and :math:`\alpha` = ``whitening``: 0 is Euclidean in
    weight space, 1 moves all inputs' directions alike. The factor s makes a unit step along a column of B move the
    pre-activation by 1 (root mean square) on average, so that radii mean the same in every layer.

    Inputs of several kinds (:mod:`~lightning_polystep.input_units`) are first measured each in a unit of its own, from
    its own mean, and eigenvalues above a tenth of that floor count.

    The eigenvectors are refreshed when the moment has moved by more than 3 % (Frobenius norm) since they were taken.

    References:
        The design's section 1.1; the softmax step itself is PolyStep, arXiv 2605.01928.
    """

    name = "inputs"
    is_rotated = True

    def rank(self, block: Block, group: dict[str, Any], statistics: InputStatistics | None) -> int:
        """Return K, the number of directions in which the inputs vary."""
        return self._whitened(block, group, _known(statistics)).shape[1]

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (D, rank), float64."""
        whitened = self._whitened(block, group, _known(statistics))
        frame = haar_frame(whitened.shape[1], rank, draw)
        return whitened @ frame.to(whitened.device)

    def loudness(self, block: Block, statistics: InputStatistics | None) -> Loudness | None:
        r"""Return how many times wider rows are probed whose pre-activations are far larger than 1.

        With R the root mean square of a row's pre-activations, :math:`\max(1, \min((R / 10)^3, R))`: weights that were
        drawn for inputs about 1 meet a column of thousands, and at a step radius of 0.1 would never come back. Not so
        where only the bias is large, because then somebody has set it, as to close a way.
        """
        moment = _known(statistics).moment
        if bool(moment.trace() <= _LOUD**2 * len(moment)):  # the product below takes as long as a part of a step
            return None
        rows = block.join([parameter.detach() for parameter in block.parameters]).to(moment)
        outward = rows @ moment
        squares = (outward * rows).sum(1)
        if block.has_bias:
            weights = rows[:, :-1]
            squares = torch.minimum(squares, ((weights @ moment[:-1, :-1]) * weights).sum(1))
        sizes = squares.clamp(min=0).sqrt()
        factors = torch.minimum((sizes / _LOUD).pow(3), sizes).clamp(min=1.0)
        return Loudness(factors, outward) if bool((factors > 1).any()) else None

    def _whitened(self, block: Block, group: dict[str, Any], statistics: InputStatistics) -> Tensor:
        if statistics.looked_at == statistics.batches:
            return statistics.basis
        statistics.looked_at, own = statistics.batches, None
        if statistics.spreads.numel():
            own = own_units(statistics.moment, statistics.spreads, block.has_bias, hidden=statistics.hidden)
        if statistics.drift > _MOST_DRIFT or statistics.mixed != (own is not None):
            moment = statistics.moment if own is None else own.moment(statistics.moment)
            floor = group["span_floor"] * (1.0 if own is None else _OWN_SHARE)
            basis = whitened_eigenbasis(moment, group["whitening"], floor)
            statistics.basis = basis if own is None else own.weights(basis)
            statistics.basis_moment, statistics.drift, statistics.held = statistics.moment, 0.0, 0
            statistics.mixed = own is not None
        return statistics.basis


def whitened_eigenbasis(moment: Tensor, whitening: float, floor: float = SPAN_FLOOR) -> Tensor:
    r"""Return :math:`s\, U_K \Lambda_K^{-\alpha/2}` of a second moment.

    Args:
        moment: G, shape (D, D), symmetric, positive semi-definite.
        whitening: :math:`\alpha` in [0, 1].
        floor: Of eigenvalues, as a share of the second largest.

    Returns:
        Shape (D, K), K <= D the number of eigenvalues above the floor. At least one column,
        zero when the inputs are all zero: a silent layer proposes nothing.

    Example:
        >>> whitened_eigenbasis(torch.diag(torch.tensor([4.0, 0.0])), whitening=1.0).abs()
        tensor([[0.5000],
                [0.0000]])
    """
    threads = torch.get_num_threads()
    try:
        # By one thread: with others its last bits change, and so would the run on a machine with other cores.
        torch.set_num_threads(1)
        values, vectors = _decomposed(moment)
    finally:
        torch.set_num_threads(threads)
    strongest = values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    keep = values > torch.maximum(floor * values[-2:][0], _ROUNDING_FLOOR * strongest)
    if not bool(keep.any()):
        return moment.new_zeros(len(moment), 1)
    values, vectors = values[keep], vectors[:, keep]
    scale = values.pow(1.0 - whitening).mean().rsqrt()
    return scale * vectors * values.pow(-whitening / 2)


def _decomposed(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors, also of the few matrices with which LAPACK's iteration does not end.

    Seen with inputs most of which are always 0: what breaks the tie of their eigenvalues is below all rounding.
    """
    try:
        return torch.linalg.eigh(moment)
    except torch.linalg.LinAlgError:
        ramp = torch.linspace(0.0, 1.0, len(moment), dtype=moment.dtype, device=moment.device)
        tiny = 16 * torch.finfo(moment.dtype).eps * moment.abs().amax()
        return torch.linalg.eigh(moment + tiny * ramp.diag())


def _known(statistics: InputStatistics | None) -> InputStatistics:
    if statistics is None:
        msg = "The input-spanned subspace needs the site's inputs, but the site was never observed."
        raise RuntimeError(msg)
    return statistics
