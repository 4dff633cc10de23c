"""Score: how many candidates of each block a step affords, where nobody has said how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_polystep.subspaces import SUBSPACES, Subspace, candidates_wanted, directions_wanted, vertices_of_row

if TYPE_CHECKING:
    from lightning_polystep.scoring.assignment import Assignment

# Fewer directions of a row say too little about it: rather fewer rows are probed.
_SMALLEST_RANK = 4
# So many candidates a step has as long as they compute no more than so many numbers, about 50 milliseconds: a network
# that wants no more is tiny. One with norms of whole batches behind convolutions wants few, which took seconds.
_FEW, _FEW_NUMBERS = 256, 5e7


def share_candidates(assignments: Sequence[Assignment], max_candidates: int | None) -> None:
    """Give every block without an explicit rank as many directions as the step's budget allows.

    Args:
        assignments: All blocks; their ranks, rows and periods are set.
        max_candidates: Candidates per step; by default what each tier affords.
    """
    for assignment in assignments:
        assignment.rank = assignment.block.group["rank"] or SUBSPACES[assignment.block.subspace].full_rank
        assignment.rotations = assignment.block.group["rotations"]
        assignment.most_rows, assignment.period = None, 1
    free = [assignment for assignment in assignments if assignment.block.group["rank"] is None]
    filling = [a for a in free if max_candidates is None and a.tier.fills_budget]
    _share_by_rows([a for a in free if a not in filling], max_candidates)
    wanted = [_wanted_share(assignment) for assignment in filling]
    few = sum(candidates_wanted(assignment.block) for assignment in filling) <= _FEW
    numbers = sum(share * each.tier.work_of_budget() for share, each in zip(wanted, filling, strict=True))
    few = few and numbers <= _FEW_NUMBERS
    for assignment, share in zip(filling, wanted if few else fill(wanted), strict=True):
        _afford(assignment, share)


def fill(wanted: Sequence[float]) -> list[float]:
    """Divide 1 among those who want some of it: alike, but nobody gets more than wanted, and others get what is left.

    Args:
        wanted: By each.

    Example:
        >>> fill([0.1, 3.0, 7.0])
        [0.1, 0.45, 0.45]
    """
    shares, left = [0.0] * len(wanted), 1.0
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    for taken, place in enumerate(order):
        shares[place] = min(wanted[place], left / (len(order) - taken))
        left -= shares[place]
    return shares


def _wanted_share(assignment: Assignment) -> float:
    """Return which part of a step's budget all directions of all rows would take."""
    rows = assignment.tier.affordable_rows()
    if rows is not None:
        return assignment.block.rows_in_play * assignment.tier.most_repeats / rows
    return candidates_wanted(assignment.block) / (assignment.tier.affordable() or math.inf)


def _afford(assignment: Assignment, share: float) -> None:
    """Probe what a share of the budget pays for; a block that it does not pay for at each step takes turns."""
    rows, directions = assignment.tier.affordable_rows(), assignment.tier.most_directions()
    if rows is not None:
        assignment.rank = min(assignment.rank, directions or assignment.rank)
        _take_rows(assignment, share * rows / assignment.tier.repeat(share * rows / assignment.block.rows_in_play))
    else:
        _afford_candidates(assignment, share * (assignment.tier.affordable() or math.inf))


def _share_by_rows(open_ended: Sequence[Assignment], max_candidates: int | None) -> None:
    counted = [a for a in open_ended if max_candidates is not None or a.tier.affordable() is not None]
    total_rows = sum(assignment.block.rows_in_play for assignment in counted)
    for assignment in counted:
        budget = max_candidates if max_candidates is not None else assignment.tier.affordable() or 1
        _afford_candidates(assignment, max(1, budget * assignment.block.rows_in_play // total_rows), turns=False)


def _afford_candidates(assignment: Assignment, candidates: float, *, turns: bool = True) -> None:
    rows_in_play = assignment.block.rows_in_play
    ceiling = directions_wanted(assignment.block) if turns else min(Subspace.full_rank, assignment.block.dim)
    affordable = [rank for rank in range(1, ceiling + 1) if rows_in_play * _vertices(assignment, rank) <= candidates]
    assignment.rank = max([min(_SMALLEST_RANK, ceiling), *affordable[-1:]])
    rows = candidates / _vertices(assignment, assignment.rank)
    _take_rows(assignment, rows if turns else max(1, int(rows)))


def _take_rows(assignment: Assignment, rows: float) -> None:
    rows *= 1 + 1e-9  # what is all of them but for rounding is all of them
    if rows < 1:
        assignment.period = math.ceil(1 / rows)
    most = max(1, int(rows))
    assignment.most_rows = most if most < assignment.block.rows else None


def _vertices(assignment: Assignment, rank: int) -> int:
    return vertices_of_row(assignment.block, rank, assignment.rotations)
