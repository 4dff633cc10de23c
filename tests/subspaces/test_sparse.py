"""Sparse directions are a partition of the coordinates."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import SparseSubspace


def basis(dim, rank, seed=0, scale=1.0):
    block = Block("block", (), (), {}, 4, dim, "sparse", scale=scale)
    return SparseSubspace().basis(block, rank, {}, None, generator(seed, 0, "basis"))


@given(dim=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_every_coordinate_is_in_one_direction_and_directions_are_orthonormal(dim, share, seed, scale):
    rank = max(1, round(share * dim))
    B = basis(dim, rank, seed, scale)
    touched = (B != 0).sum(1)
    assert touched.eq(1).all()
    sizes = (B != 0).sum(0)
    assert int(sizes.max() - sizes.min()) <= 1
    torch.testing.assert_close(B.T @ B, scale**2 * torch.eye(rank, dtype=torch.float64))


def test_the_partition_and_its_signs_are_fresh_with_each_draw():
    first, second = basis(30, 3, seed=1), basis(30, 3, seed=2)
    assert not torch.equal(first != 0, second != 0)
    assert 5 < int((first > 0).sum()) < 25
