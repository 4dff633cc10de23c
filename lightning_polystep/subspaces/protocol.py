"""What a subspace is: a small protocol whose docstring is the specification."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics


class Subspace(Protocol):
    """Chooses the directions in which the particles of a block may move.

    ``is_rotated`` tells that the columns of its bases are already Haar-random, so that turning the polytopes once more
    would change nothing.
    """

    name: str
    is_rotated: bool

    def rank(self, block: Block, group: dict[str, Any], statistics: InputStatistics | None) -> int:
        """Return how many directions the subspace could give this block now."""
        ...

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (block.dim, rank), float64: columns of about one unit of radius each.

        The same B serves all particles (rows) of the block; a candidate moves one row by ``probe_radius * B R v``.
        """
        ...
