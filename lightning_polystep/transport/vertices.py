"""Sums and softmax over the vertices of particles; of those with two, torch takes five to ten times as long."""

from __future__ import annotations

import torch
from torch import Tensor

_TWO = 2


def sum_over_vertices(values: Tensor) -> Tensor:
    """Return the sum over the last axis, which stays.

    Args:
        values: Shape (..., m).

    Example:
        >>> sum_over_vertices(torch.tensor([[1.0, 2.0]])).tolist()
        [[3.0]]
    """
    if values.shape[-1] != _TWO:
        return values.sum(-1, keepdim=True)
    return values[..., :1] + values[..., 1:]


def softmax_over_vertices(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis.

    Args:
        logits: Shape (..., m).

    Example:
        >>> softmax_over_vertices(torch.tensor([[0.0, float("-inf")]])).tolist()
        [[1.0, 0.0]]
    """
    if logits.shape[-1] != _TWO:
        return torch.softmax(logits, dim=-1)
    first = torch.sigmoid(logits[..., :1] - logits[..., 1:])
    return torch.cat([first, 1 - first], dim=-1)
