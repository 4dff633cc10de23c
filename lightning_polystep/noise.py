r"""Random perturbations of parameters, dense and of low rank, one for each direction that is probed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Noise = Callable[[Sequence[torch.Size], int, torch.Generator], Tensor]


def gaussian(shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
    r"""Return :math:`z \sim \mathcal N(0, I_D)`, shape (count, D), float64.

    Args:
        shapes: Of the parameters, with D numbers altogether.
        count: How many.
        draw: Source of randomness, on the CPU.
    """
    return torch.randn(count, _numbers(shapes), generator=draw, dtype=torch.float64)


def rademacher(shapes: Sequence[torch.Size], count: int, draw: torch.Generator) -> Tensor:
    r"""Return :math:`z \in \{-1, 1\}^D`, each sign with probability 1/2, shape (count, D), float64.

    Args:
        shapes: Of the parameters, with D numbers altogether.
        count: How many.
        draw: Source of randomness, on the CPU.

    Example:
        >>> rademacher([torch.Size([2, 2])], 3, torch.Generator().manual_seed(0)).abs().unique()
        tensor([1.], dtype=torch.float64)
    """
    return 2.0 * torch.randint(2, (count, _numbers(shapes)), generator=draw).double() - 1.0


def low_rank(shapes: Sequence[torch.Size], count: int, draw: torch.Generator, *, rank: int) -> Tensor:
    r"""Return a matrix of low rank for every weight, and Gaussian noise for vectors, shape (count, D), float64.

    .. math:: z = \frac{1}{\sqrt r} A B^\top, \qquad A \in \mathbb R^{m \times r},\; B \in \mathbb R^{n \times r}

    with standard normal A and B, so that each number of z has variance 1. A tensor of more axes counts as a matrix of
    its first one and all others.

    Args:
        shapes: Of the parameters, with D numbers altogether.
        count: How many.
        draw: Source of randomness, on the CPU.
        rank: r; a matrix whose smaller side is no longer has full rank.

    Example:
        >>> z = low_rank([torch.Size([5, 4])], 2, torch.Generator().manual_seed(0), rank=1)
        >>> torch.linalg.matrix_rank(z.reshape(2, 5, 4)).tolist()
        [1, 1]
    """
    parts = []
    for shape in shapes:
        if len(shape) < 2:
            parts.append(gaussian([shape], count, draw))
            continue
        rows, columns = shape[0], math.prod(shape[1:])
        left, right = (torch.randn(count, n, rank, generator=draw, dtype=torch.float64) for n in (rows, columns))
        parts.append((left @ right.mT).flatten(1) / math.sqrt(rank))
    return torch.cat(parts, dim=1)


def _numbers(shapes: Sequence[torch.Size]) -> int:
    return sum(math.prod(shape) for shape in shapes)
