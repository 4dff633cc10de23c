"""Score: numbers as precise as small differences between losses need."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def precise(numbers: Tensor) -> Tensor:
    """Return numbers as at least float32, so that small differences are seen.

    Args:
        numbers: Of any shape and dtype.
    """
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def half_difference(both: Tensor) -> Tensor:
    """Return half of what a value that was shifted up and down differs by.

    Args:
        both: The two, (2, ...).
    """
    up, down = (precise(each) for each in both)
    half = 0.5 * (up - down)
    if math.isfinite(float(half.sum())):  # or else look: torch's ``where`` takes as long as all the rest together
        return half
    return torch.where(up == down, 0.0, half)  # of what is masked out both are infinite
