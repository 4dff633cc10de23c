"""Who scores what: the share of the candidates of this process, and the sum over processes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How candidates are divided among processes.

    Args:
        rank: This process, counted from 0.
        world_size: Number of processes; this version runs one.

    Example:
        >>> Layout(rank=1, world_size=3).share(10)
        range(4, 8)
    """

    rank: int = 0
    world_size: int = 1

    def share(self, candidates: int) -> range:
        """Return the contiguous range of candidates that this process scores."""
        size = -(-candidates // self.world_size)
        return range(min(self.rank * size, candidates), min((self.rank + 1) * size, candidates))

    def gather(self, share: Tensor) -> Tensor:
        """Return the costs of all candidates from this process's share."""
        if self.world_size == 1:
            return share
        msg = "Several processes are not supported by this version: use devices=1."
        raise NotImplementedError(msg)
