"""Score: how many candidates at once, by a memory budget that gives way when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Chunking:
    """The number of candidates evaluated together.

    Args:
        size: Candidates per chunk, at least 1.
    """

    size: int

    def run(self, score: Callable[[int, int], Tensor], share: range) -> Tensor:
        """Score the candidates of ``share`` chunk by chunk; halve the chunk, for good, when memory runs out.

        Args:
            score: Scores the candidates [start, stop).
            share: A contiguous range of candidates.

        Returns:
            Their losses, shape (len(share),).

        Raises:
            RuntimeError: The device's own error, when not even one candidate fits.
        """
        losses: list[Tensor] = []
        start = share.start
        while start < share.stop:
            stop = min(start + self.size, share.stop)
            try:
                losses.append(score(start, stop))
            except (RuntimeError, MemoryError) as error:
                if stop - start == 1 or not is_out_of_memory(error):
                    raise
                self.size = (stop - start) // 2
                warnings.warn(
                    f"Out of memory while scoring: evaluating {self.size} candidates at once from now on. "
                    "Set a smaller memory_budget to start there.",
                    stacklevel=2,
                )
            else:
                start = stop
        return torch.cat(losses)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
