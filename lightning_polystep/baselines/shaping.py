"""What evolution strategies make of losses before they weigh perturbations by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shaping = Callable[[Tensor], Tensor]


def raw(losses: Tensor) -> Tensor:
    """Return the losses as they are.

    Args:
        losses: Shape (n,), finite.
    """
    return losses


def centred_ranks(losses: Tensor) -> Tensor:
    r"""Return the losses' ranks, from -1/2 for the smallest to 1/2 for the largest: no outlier counts more than others.

    .. math:: u_i = \frac{\mathrm{rank}_i}{n - 1} - \frac 1 2

    Equal losses share the mean of their ranks, so that candidates which change nothing pull in no direction.

    Args:
        losses: Shape (n,), finite.

    Example:
        >>> centred_ranks(torch.tensor([3.0, 100.0, 1.0])).tolist()
        [0.0, 0.5, -0.5]
        >>> centred_ranks(torch.tensor([2.0, 2.0])).tolist()
        [0.0, 0.0]

    References:
        Wierstra et al. 2014, Natural evolution strategies (fitness shaping); Salimans et al. 2017, arXiv 1703.03864.
    """
    if len(losses) < 2:
        return torch.zeros_like(losses)
    _, place, counts = losses.unique(return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    ranks = below + (counts - 1) / 2
    return (ranks[place] / (len(losses) - 1) - 0.5).to(losses)


def standardised(losses: Tensor) -> Tensor:
    r"""Return :math:`u_i = (L_i - \bar L) / \sigma_L`; zeros where all losses are equal.

    Args:
        losses: Shape (n,), finite.

    Example:
        >>> standardised(torch.tensor([1.0, 3.0])).tolist()
        [-1.0, 1.0]
    """
    spread = losses.std(correction=0)
    return torch.zeros_like(losses) if spread == 0 else (losses - losses.mean()) / spread
