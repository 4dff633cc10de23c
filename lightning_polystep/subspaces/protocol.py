"""What a subspace is: a small protocol whose docstring is the specification."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from lightning_polystep.particles import Block, InputStatistics, Loudness, Proposal


class Subspace(Protocol):
    """Chooses the directions in which the particles of a block may move.

    A subspace inherits from this class, which holds what most of them have in common.

    Args:
        name: What the option ``subspace`` calls it.
        is_rotated: Whether polytopes are to stay as they are: the columns of its bases are Haar-random already, or
            mean something one by one.
        has_radius: Whether candidates may be probed nearer or farther than they are.
        particle_dim: Dimension of a particle where the subspace decides it, else None.
        full_rank: Directions that are wanted per row and step where candidates are nearly free.
        adapts_reach: Whether rows without a signal are probed wider.
        spans: What a candidate moves: a row of a layer, a layer, or all layers of a parameter group.
        follows_moves: Whether :meth:`guided` wants to know what the rows have lately done.
    """

    name: ClassVar[str]
    is_rotated: ClassVar[bool]
    has_radius: ClassVar[bool] = True
    particle_dim: ClassVar[int | None] = None
    # The rank that was measured best for rotated directions.
    full_rank: ClassVar[int] = 128
    adapts_reach: ClassVar[bool] = True
    spans: ClassVar[Literal["row", "layer", "group"]] = "row"
    follows_moves: ClassVar[bool] = False

    def rank(self, block: Block, group: dict[str, Any], statistics: InputStatistics | None) -> int:
        """Return how many directions the subspace could give this block now: by default D, all of a row's own."""
        del group, statistics
        return block.dim

    def basis(
        self, block: Block, rank: int, group: dict[str, Any], statistics: InputStatistics | None, draw: torch.Generator
    ) -> Tensor:
        """Return B, shape (block.dim, rank), float64: columns of about one unit of radius each.

        The same B serves all particles (rows) of the block; a candidate moves one row by ``probe_radius * B R v``.
        """
        ...

    def guided(self, basis: Tensor, block: Block, moves: Tensor, draw: torch.Generator) -> Tensor:
        """Return the basis with what the rows have lately done in it: by default as it is.

        Args:
            basis: B, shape (D, rank), float64.
            block: Its block.
            moves: Moving average of each row's moves, shape (rows, D).
            draw: Source of randomness, on the CPU.
        """
        del block, moves, draw
        return basis

    def probe_radius(self, group: dict[str, Any]) -> float:
        """Return by what the columns of B are multiplied for a candidate."""
        return float(group["probe_radius"])

    def loudness(self, block: Block, statistics: InputStatistics | None) -> Loudness | None:
        """Return how many times wider than normal each row is probed because of its size; None for 1."""
        del block, statistics
        return None

    def starts(
        self, block: Block, group: dict[str, Any], draw: torch.Generator, statistics: InputStatistics | None = None
    ) -> Tensor | None:
        """Return displacements of a row, (K, D), float64, from which a candidate is scored; None for the row itself."""
        del block, group, draw, statistics
        return None

    def centre(self, block: Block, statistics: InputStatistics | None) -> Tensor | None:
        """Return what the inputs are on the mean, (D - 1,), float64, if biases are to move along with weights."""
        del block, statistics
        return None

    def settle(self, proposal: Proposal, before: Tensor) -> None:
        """Bring a block that has just moved to where its next candidates start: by default within its bounds.

        Args:
            proposal: What has moved.
            before: The first of its parameters as it was.
        """
        del before
        low, high = proposal.block.bounds
        if low > -math.inf or high < math.inf:
            for parameter in proposal.block.parameters:
                parameter.clamp_(low, high)


def some_axes(dim: int, rank: int, draw: torch.Generator) -> Tensor:
    """Return all axes, or a random choice of them when fewer are asked for.

    Args:
        dim: D.
        rank: How many are asked for.
        draw: Source of randomness, on the CPU.

    Returns:
        Shape (D, rank), float64, the axes in ascending order.

    Example:
        >>> some_axes(3, 3, torch.Generator()).diagonal()
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    chosen, axes = torch.randperm(dim, generator=draw)[:rank].sort().values, torch.eye(dim, dtype=torch.float64)
    return axes if rank >= dim else axes[:, chosen]


def scaled_by_layer(block: Block, columns: Tensor) -> Tensor:
    r"""Return :math:`\sqrt D\, \operatorname{diag}(s)\, C` for unit columns C: radii in units of pre-activation.

    Args:
        block: With ``scales`` s, one for each of its parameters; without, its one ``scale`` takes their place.
        columns: C, shape (D, rank), float64.
    """
    if not block.scales:  # one row by itself
        return block.scale * columns
    sizes = torch.tensor([parameter.numel() for parameter in block.parameters])
    scales = torch.tensor(block.scales, dtype=torch.float64).repeat_interleave(sizes)
    return block.dim**0.5 * scales[:, None] * columns
