r"""Units of a layer's inputs: what keeps one wide column, or one bad value, from switching off all others.

The span of the inputs leaves out directions in which they hardly vary, which is right where all inputs have one unit:
a pixel that hardly ever lights up is noise. In a table every column has its own: square metres beside shares, a year
beside a flag. So each input j has a *unit*, the size that its deviations from the mean typically have where there are
any,

.. math:: u_j = \operatorname{var} x_j / a_j, \qquad a_j = \operatorname{mean} |x_j - m_j| ,

which is 1.25 standard deviations of a normal column, and half of what a pixel is worth, however seldom it is lit: a
rare pixel is no narrow column. Where units differ by more than a factor of ten, or lie far below the inputs' mean,
directions are taken from :math:`(x_j - m_j) / u_j`; elsewhere from the inputs as they are. So are those of a hidden
layer whose units are small: they move while the layers in front are trained, and weights that made up for them, as
behind a few ReLUs of ordinary first weights, would turn each such move into one many times as large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Units that differ by more than this factor are of several kinds. Pixels, spikes, and hidden layers of the networks in
# configs/ stay within it.
_ONE_KIND = 10.0
# Inputs smaller than the constant 1 of a bias by more than this are faint. Hidden layers of ordinary first weights are
# at 0.02 already: weights that made up for it would outgrow those of all other layers.
_FAINT = 100.0
# An input counts as narrow only if it differs from its most common value in so many samples, else it may be a pixel
# that was grey now and then, or a ReLU that hardly opens.
_SELDOM = 0.15
# What lies so many typical units away is pulled in, to within so many, if by itself it makes up so many times the
# variance that is typical. The largest values of ReLU layers lie 40 away.
_FAR, _NEAR, _MOST_PART = 30.0, 10.0, 10.0
# Of the samples, which tell what is typical; and the share of them that are taken for ordinary ones to begin with.
_FEW, _ORDINARY = 512, 0.9
# A column that varies by less than this share of its mean is constant: float32 knows its variance no better.
_CONSTANT = 1e-3
# A product in float32 is off by a share of 1e-7 of the squared means: so many standard deviations away, too much.
_EXACT = 100.0
# Moments of batches whose deviations differ by more than this factor are not averaged.
_MOST_CHANGE = 10.0
_TINY = torch.finfo(torch.float64).tiny


def spreads_of(rows: Tensor) -> Tensor:
    """Return the mean absolute deviation and the variance of each column; 0 for a constant one.

    Args:
        rows: Shape (N, D).

    Returns:
        a and the variances, shape (2, D), float64.

    Example:
        >>> spreads_of(torch.tensor([[1.0, 7.0], [3.0, 7.0], [3.0, 7.0], [5.0, 7.0]]))
        tensor([[1., 0.],
                [2., 0.]], dtype=torch.float64)
    """
    if len(rows) == 0:
        return rows.new_zeros(2, rows.shape[1], dtype=torch.float64)
    rows = rows.double()
    mean = rows.mean(0)
    deviations = rows - mean
    spreads = torch.stack([deviations.abs().mean(0), deviations.square().mean(0)])
    return spreads * (spreads[0] > _CONSTANT * mean.abs())


def units(spreads: Tensor) -> Tensor:
    """Return the unit of each column, shape (D,); 0 for a constant one.

    Args:
        spreads: As :func:`spreads_of` returns them, or a mean of several such.

    Example:
        A column that is 4 in every tenth sample has the unit of one that is 4 in every second one.

        >>> rows = torch.zeros(1000, 2)
        >>> rows[::10, 0], rows[::2, 1] = 4.0, 4.0
        >>> units(spreads_of(rows))
        tensor([2., 2.], dtype=torch.float64)
    """
    deviations, variances = spreads
    return torch.where(deviations > 0, variances / deviations.clamp(min=_TINY), 0.0)


def pulled_in(rows: Tensor) -> Tensor:
    """Return inputs of which values far outside of the ordinary are pulled in; the same tensor if there are none.

    Three values of 1e4 among pixels are not what the layer's inputs are like, but would be nearly all of their moment.
    A wide column is no such thing: it is far from the others in many samples, so its own deviations tell what is far.

    Args:
        rows: Shape (N, D).

    Example:
        >>> rows = torch.rand(100, 8)
        >>> pulled_in(rows) is rows
        True
        >>> rows[3, 5] = 1e4
        >>> 1 < float(pulled_in(rows).max()) < 10
        True
    """
    few = rows[:: max(1, len(rows) // _FEW)].double()
    if len(few) < 2:
        return rows
    largest = few.abs().amax(1)
    ordinary = few[largest <= largest.kthvalue(max(1, int(_ORDINARY * len(few)))).values]
    own = units(spreads_of(ordinary))
    if not bool((own > 0).any()):  # silent in all ordinary samples
        ordinary, own = few, units(spreads_of(few))
    middle = ordinary.mean(0)
    typical = own[own > 0].median() if bool((own > 0).any()) else own.new_zeros(())
    outermost = torch.maximum(rows.amax(0).double() - middle, middle - rows.amin(0).double())
    # What is not finite is told by the moment that it makes.
    limit = max(_FAR, (_MOST_PART * len(rows)) ** 0.5)
    far = (outermost > limit * typical) & (typical > 0) & outermost.isfinite()
    if not bool(far.any()):
        return rows
    away = (ordinary[:, far] - middle[far]).abs()
    common = torch.where(away > 0, away, torch.nan).nanmedian(0).values.nan_to_num(0.0)
    unit, deviation = torch.maximum(common, typical), rows[:, far].double() - middle[far]
    near = middle[far] + torch.minimum(torch.maximum(deviation, -_NEAR * unit), _NEAR * unit)
    tamed = rows.clone()
    tamed[:, far] = torch.where(deviation.abs() > limit * unit, near.to(rows), rows[:, far])
    return tamed


def is_far_off(rows: Tensor, spreads: Tensor) -> bool:
    """Tell whether some inputs vary so little around their means that a product of them takes float64.

    Args:
        rows: Inputs, shape (N, D).
        spreads: Of them, shape (2, D).
    """
    if len(rows) == 0:
        return False
    return bool(((spreads[1] > 0) & (rows.mean(0).square() > _EXACT**2 * spreads[1])).any())


def packed(moment: Tensor, spreads: Tensor, *, hidden: bool = False) -> Tensor:
    """Return a moment and the spreads of its columns as one symmetric matrix, which processes tell one another.

    Args:
        moment: Shape (D, D).
        spreads: Shape (2, D) or, without those of a bias, (2, D - 1).
        hidden: Whether these inputs come out of layers that are trained.

    Returns:
        Shape (D + 2, D + 2).

    Example:
        >>> moment, spreads = unpacked(packed(torch.eye(2), torch.tensor([[5.0], [6.0]])))
        >>> moment.equal(torch.eye(2)), spreads.tolist()
        (True, [[5.0, 0.0], [6.0, 0.0]])
    """
    dim, inputs = len(moment), spreads.shape[1]
    square = moment.new_zeros(dim + 2, dim + 2)
    square[:dim, :dim] = moment
    square[dim:, :inputs], square[:inputs, dim:] = spreads.to(moment), spreads.to(moment).T
    square[-1, -1] = float(hidden)
    return square


def unpacked(square: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`packed` was given; a bias has no spread."""
    return square[:-2, :-2].contiguous(), square[-2:, :-2].contiguous()


def says_hidden(square: Tensor) -> bool:
    """Tell whether :func:`packed` was told that the inputs are hidden."""
    return bool(square[-1, -1])


def changed(known: Tensor, new: Tensor) -> bool:
    """Tell whether a batch is so unlike those before that one of the two is not what the inputs are like.

    Args:
        known: Spreads so far, shape (2, D).
        new: Those of the batch, likewise.

    Example:
        >>> usual = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]])
        >>> changed(usual, 1e4 * usual), changed(usual, torch.tensor([1e4, 1.0, 1.0]) * usual)  # a column is no batch
        (True, False)
    """
    both = (known[0] > 0) & (new[0] > 0)
    if not bool(both.any()):
        return False
    ratio = float((new[0] / known[0])[both].median())
    return not 1 / _MOST_CHANGE <= ratio <= _MOST_CHANGE


def brought_together(known: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return what known and new columns are multiplied by before they are averaged: 1 but where one is far too wide.

    Of a column whose deviations differ by more than a factor of ten, the wider one is doubted if it stands out among
    the columns as well: one batch in another unit would otherwise fill the average for a long time.

    Args:
        known: Mean absolute deviations so far, shape (D,).
        new: Those of the batch, likewise.

    Example:
        >>> brought_together(torch.tensor([1e6, 1.0, 1.0]), torch.tensor([2.0, 1.0, 30.0]))
        (tensor([2.0000e-06, 1.0000e+00, 1.0000e+00]), tensor([1.0000, 1.0000, 0.3333]))
    """
    both = (known > 0) & (new > 0)
    typical = torch.minimum(known, new)[both].median() if bool(both.any()) else known.new_zeros(())
    shrink = both & (known > _MOST_CHANGE * torch.maximum(new, typical))
    grow = both & (new > _MOST_CHANGE * torch.maximum(known, typical))
    one = torch.ones_like(known)
    return torch.where(shrink, new / known, one), torch.where(grow, _MOST_CHANGE * known / new, one)


class OwnUnits(NamedTuple):
    r"""Inputs in units of their own, :math:`z_j = (x_j - m_j) / u_j`, and how weights on them act on the inputs.

    Args:
        means: m, shape (D,); 0 without a bias, which is what takes up a mean.
        rates: 1 / u, shape (D,); 0 for a constant input, and 1 for the bias itself.
        has_bias: Whether the last input is the constant 1 of a bias.
    """

    means: Tensor
    rates: Tensor
    has_bias: bool

    def moment(self, moment: Tensor) -> Tensor:
        """Return the second moment of z, given that of the inputs, shape (D, D)."""
        own = (moment - torch.outer(self.means, self.means)) * torch.outer(self.rates, self.rates)
        if self.has_bias:  # its constant 1 is as it was, and the others are 0 on the mean
            own[-1], own[:, -1], own[-1, -1] = 0.0, 0.0, 1.0
        return own

    def weights(self, weights: Tensor) -> Tensor:
        """Return weights on the inputs that act as some do on z, shape (D, K)."""
        own = self.rates[:, None] * weights
        if self.has_bias:
            own[-1] -= self.means[:-1] @ own[:-1]
        return own


def own_units(moment: Tensor, spreads: Tensor, has_bias: bool, *, hidden: bool = False) -> OwnUnits | None:
    """Return the inputs' own units, or None where they are all of one kind, as pixels and spikes are.

    Args:
        moment: Second moment of the inputs, shape (D, D), float64; the last column is that of the constant 1 of a bias.
        spreads: Of the inputs, shape (2, D).
        has_bias: Whether there is a bias.
        hidden: Whether the inputs come out of layers that are trained: then nothing makes up for inputs that are all
            small.

    Example:
        >>> sizes = torch.tensor([1.0, 0.5, 1e3], dtype=torch.float64)
        >>> spreads = torch.stack([sizes, sizes.square()])
        >>> own_units(torch.diag(spreads[1]), spreads, has_bias=False).rates
        tensor([1.0000e+00, 2.0000e+00, 1.0000e-03], dtype=torch.float64)
        >>> own_units(torch.diag(spreads[1, :2]), spreads[:, :2], has_bias=False) is None
        True
    """
    inputs = len(moment) - has_bias
    means = moment[:inputs, -1] if has_bias else moment.new_zeros(inputs)
    deviations, _ = spreads = spreads[:, :inputs]
    if not bool((deviations > 0).any()):  # single samples do not deviate: what they vary by from one to the next does
        variances = moment.diagonal()[:inputs] - means.square()
        variances = torch.where(variances > (_CONSTANT * means).square(), variances, 0.0)
        deviations, _ = spreads = torch.stack([variances.sqrt(), variances])
    own = units(spreads)
    # Of a 0 and a 1 that comes in a share p of the samples, 4 p (1 - p).
    often = (own > 0) & (deviations > 4 * _SELDOM * (1 - _SELDOM) * own)
    if not bool((own > 0).any()):
        return None
    typical = own[often if bool(often.any()) else own > 0].median()
    if hidden and float(typical) < 1 / _ONE_KIND:
        return None
    wide = own > _ONE_KIND * typical
    narrow = often & (_ONE_KIND * own < typical)
    off = often & (means.abs() > _ONE_KIND * own)
    # The constant 1 of a bias is an input as well.
    beside_bias = not has_bias or 1 / _FAINT <= float(typical) <= _ONE_KIND
    if beside_bias and not bool((wide | narrow | off).any()):
        return None
    rates = torch.where(own > 0, 1 / torch.where(own > 0, own, 1.0), 0.0)
    if has_bias:
        means, rates = torch.cat([means, means.new_zeros(1)]), torch.cat([rates, rates.new_ones(1)])
    return OwnUnits(means, rates, has_bias)
