"""A dense Gaussian basis: unit columns, fresh with every draw."""

import math

import pytest
import torch

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import SUBSPACES, GaussianSubspace

SUBSPACE = GaussianSubspace()


def block(dim, scale=1.0):
    return Block("weight", (), (), {}, 1, dim, "gaussian", scale=scale)


def basis(dim, rank, seed=0, scale=1.0):
    return SUBSPACE.basis(block(dim, scale), rank, {}, None, generator(seed, 0, "basis"))


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (5, 5), (40, 3)])
def test_columns_have_the_length_of_the_scale(dim, rank, scale):
    B = basis(dim, rank, scale=scale)
    assert B.shape == (dim, rank)
    assert B.dtype == torch.float64
    torch.testing.assert_close(B.norm(dim=0), torch.full((rank,), scale, dtype=torch.float64))


def test_is_a_function_of_the_draw():
    assert torch.equal(basis(4, 2), basis(4, 2))
    assert not torch.equal(basis(4, 2), basis(4, 2, seed=1))


def test_no_direction_is_preferred():
    B = basis(3, 20_000)
    bound = 5 / math.sqrt(20_000)
    assert B.mean(1).abs().max() < bound
    assert (B @ B.T / 20_000 - torch.eye(3) / 3).abs().max() < bound


def test_offers_as_many_directions_as_a_row_has():
    assert SUBSPACE.rank(block(7), {}, None) == 7
    assert SUBSPACES["gaussian"].name == "gaussian"
