r"""What a block's rows have lately done alike: directions for proposals that look at the past.

All rows of a block share one basis, so they can share no more than what is common to their moves: the strongest right
singular vectors of the (rows x dim) matrix of moves. Of a block of one row that is the move itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Moves weaker than this, relative to the strongest, are rounding.
_ROUNDING = 1e-6


def leading_directions(moves: Tensor, most: int) -> Tensor:
    """Return an orthonormal basis of what the rows' moves have most in common, the strongest direction first.

    Args:
        moves: Of each row, shape (rows, D).
        most: How many directions are wanted.

    Returns:
        Shape (D, k), float64, k at most ``most`` and the rank of the moves; the first column points where the rows go
        on the whole.

    Example:
        >>> leading_directions(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), most=2).abs().tolist()
        [[1.0], [0.0]]
    """
    moves = moves.double()
    if not bool(moves.isfinite().all() and moves.any()):
        return moves.new_zeros(moves.shape[1], 0)
    _, sizes, directions = torch.linalg.svd(moves, full_matrices=False)
    kept = min(most, int((sizes > _ROUNDING * sizes[0]).sum()))
    directions = directions[:kept].T.contiguous()
    if kept and float(moves.sum(0) @ directions[:, 0]) < 0:
        directions[:, 0].neg_()
    return directions


def common_move(moves: Tensor) -> Tensor:
    """Return the direction that the rows' moves have most in common, shape (D,), float64; zeros before the first.

    Args:
        moves: Of each row, shape (rows, D).

    Example:
        >>> common_move(torch.tensor([[0.0, 2.0]])).abs().tolist()
        [0.0, 1.0]
    """
    leading = leading_directions(moves.cpu(), 1)
    return leading[:, 0] if leading.shape[1] else torch.zeros(moves.shape[1], dtype=torch.float64)
