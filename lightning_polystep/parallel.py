"""Who scores what: the two axes along which processes share a step, and how the candidates are divided."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Size = int | Literal["auto"]


@dataclass(frozen=True)
class Axis:
    """A direction in which work is divided.

    Args:
        index: The place of this process, counted from 0.
        size: Number of places.
    """

    index: int = 0
    size: int = 1


@dataclass(frozen=True)
class Layout:
    """Where this process stands: which shard of the batch it sees, and which share of the candidates it scores.

    Processes of one *candidate group* see the same shard and divide the candidates. With D = 1 data shard this is the
    candidate-parallel layout, with groups of C = 1 the data-parallel one, and the hybrid of both otherwise.

    Args:
        data: Along the batch, D shards.
        candidates: Along the candidates, C shares.
    """

    data: Axis = Axis()
    candidates: Axis = Axis()

    @classmethod
    def of(cls, rank: int, world_size: int, data_size: Size = 1, candidate_size: Size = "auto") -> Layout:
        """Return the place of a process; ranks count along the candidates first.

        Args:
            rank: The process, counted from 0.
            world_size: Number of processes, D x C.
            data_size: D; "auto" takes what the other size leaves.
            candidate_size: C; "auto" takes what the other size leaves.

        Raises:
            ValueError: When the sizes do not multiply to the number of processes.

        Example:
            >>> Layout.of(rank=1, world_size=4, data_size=2)
            Layout(data=Axis(index=0, size=2), candidates=Axis(index=1, size=2))
        """
        if data_size == "auto" and candidate_size == "auto":
            raise ValueError('Of data_parallel_size and candidate_parallel_size only one can be "auto": set the other.')
        if candidate_size == "auto":
            shards = int(data_size)
            shares = world_size // shards if shards > 0 else 0
        else:
            shares = candidate_size
            shards = (world_size // shares if shares > 0 else 0) if data_size == "auto" else int(data_size)
        if shards < 1 or shares < 1 or shards * shares != world_size:
            raise ValueError(
                f"data_parallel_size={data_size} and candidate_parallel_size={candidate_size} do not make "
                f"{world_size} process(es): their product must be the number of devices on all nodes."
            )
        return cls(Axis(rank // shares, shards), Axis(rank % shares, shares))

    @property
    def rank(self) -> int:
        """The process, counted from 0."""
        return self.data.index * self.candidates.size + self.candidates.index

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.data.size * self.candidates.size

    def group_of(self, rank: int) -> int:
        """Return the shard of the batch that a process sees: its candidate group."""
        return rank // self.candidates.size


@dataclass(frozen=True)
class Work:
    """The candidates of a block, in pieces that one process scores in one go.

    Where a piece begins and ends depends on nothing but the plan. What a candidate costs may depend, in the last bit,
    on which others are computed beside it, so equal pieces give equal bits on any number of processes.

    Args:
        candidates: Number of candidates.
        piece: Candidates of a piece; the last one may have fewer.
        seconds: What a piece is expected to take; only ratios between blocks count.
    """

    candidates: int
    piece: int
    seconds: float = 1.0

    @property
    def pieces(self) -> int:
        """Number of pieces."""
        return -(-self.candidates // self.piece)


class Balance:
    r"""How large a part of a step's work each place of an axis is given, by how long its last part took it.

    A part takes longer than predicted where a process prepares more blocks before it scores, or is slower than others:

    .. math:: p_c \propto p_c \, (\bar t / t_c)^{1/3}

    Args:
        places: Number of places.

    Example:
        >>> balance = Balance(2)
        >>> balance.learn([1.0, 8.0])
        >>> [round(part, 2) for part in balance.parts]
        [0.67, 0.33]
    """

    def __init__(self, places: int) -> None:
        self.parts = [1 / places] * places

    def learn(self, seconds: Sequence[float]) -> None:
        """Move work to the places that were done sooner.

        Args:
            seconds: Of each place. Nothing is learnt from a step in which one of them had nothing to do.
        """
        if min(seconds) > 0:
            wanted = [part * took ** (-1 / 3) for part, took in zip(self.parts, seconds, strict=True)]
            total = sum(wanted)
            self.parts = [part / total for part in wanted]


def divide(work: Sequence[Work], axis: Axis, parts: Sequence[float] | None = None) -> list[range]:
    r"""Return, for each block, the contiguous range of candidates that falls to one place of an axis.

    All pieces of all blocks are laid one behind the other, each as long as it is expected to take, and the whole is cut
    into one part for each place. A piece belongs to the part that its middle lies in.

    Args:
        work: One entry per block.
        axis: The place, and the number of places.
        parts: How large each place's part is; equal by default. Their sum is 1.

    Returns:
        Ranges that, over all places, cover every candidate exactly once.

    Example:
        >>> blocks = [Work(candidates=8, piece=2), Work(candidates=4, piece=2, seconds=2.0)]
        >>> divide(blocks, Axis(0, 2)), divide(blocks, Axis(1, 2))
        ([range(0, 8), range(0, 0)], [range(8, 8), range(0, 4)])
    """
    total = sum(block.pieces * block.seconds for block in work)
    # The last end is left out: the last place takes what is left, whatever the sum of the parts rounds to.
    ends = list(accumulate(parts or [1 / axis.size] * axis.size))[:-1]
    shares, begin = [], 0.0
    for block in work:

        def owner(piece: int, begin: float = begin, seconds: float = block.seconds) -> int:
            return bisect_right(ends, (begin + (piece + 0.5) * seconds) / total)

        first, last = (bisect_left(range(block.pieces), place, key=owner) for place in (axis.index, axis.index + 1))
        shares.append(range(*(min(piece * block.piece, block.candidates) for piece in (first, last))))
        begin += block.pieces * block.seconds
    return shares
