"""Arguments of ``two_level_losses``."""

import torch


def case(units=3, samples=20, starts=4, shifts=2, whole=False):
    lacking, other, around, moved = (
        torch.randn(units, width, dtype=torch.float64) for width in (samples, samples, starts, shifts)
    )
    # Small whole numbers meet boundaries and each other.
    return (lacking.round(), other, around.round(), moved.round()) if whole else (lacking, other, around, moved)
