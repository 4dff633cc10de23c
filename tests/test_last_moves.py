"""What rows have in common, against a matrix whose answer is known."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.last_moves import common_move, leading_directions


@given(rows=st.integers(1, 6), dim=st.integers(1, 8), rank=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_directions_are_orthonormal_and_span_what_there_is(rows, dim, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    rank = min(rank, rows, dim)
    moves = (torch.randn(rows, rank, generator=draw) @ torch.randn(rank, dim, generator=draw)).double()
    V = leading_directions(moves, most=dim)
    assert V.shape[1] <= rank
    torch.testing.assert_close(V.T @ V, torch.eye(V.shape[1], dtype=torch.float64))
    torch.testing.assert_close(moves @ V @ V.T, moves, atol=1e-4, rtol=1e-4)


def test_the_common_move_points_where_the_rows_go():
    moves = torch.tensor([[-2.0, 0.1, 0.0], [-3.0, 0.0, 0.1], [1.0, 0.0, 0.0]])
    direction = common_move(moves)
    assert float(direction[0]) < -0.99
    torch.testing.assert_close(common_move(-moves), -direction)


def test_without_a_move_there_is_no_direction():
    assert common_move(torch.zeros(3, 2)).tolist() == [0.0, 0.0]
    assert leading_directions(torch.zeros(3, 2), 2).shape == (2, 0)
    assert leading_directions(torch.full((3, 2), float("nan")), 2).shape == (2, 0)
