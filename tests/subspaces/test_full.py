"""The full space: the coordinates themselves, in units of the block's scale."""

import pytest
import torch

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import SUBSPACES, FullSubspace

SUBSPACE = FullSubspace()


def block(dim, scale=1.0):
    return Block("beta", (), (), {}, 1, dim, "full", scale=scale)


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("dim", [1, 2, 8])
def test_all_coordinates_are_the_scaled_identity(dim, scale):
    B = SUBSPACE.basis(block(dim, scale), dim, {}, None, generator(0, 0, "basis"))
    assert torch.equal(B, scale * torch.eye(dim, dtype=torch.float64))


def test_fewer_are_a_random_choice():
    chosen = [
        tuple(SUBSPACE.basis(block(6), 2, {}, None, generator(seed, 0, "basis")).nonzero()[:, 0].tolist())
        for seed in range(200)
    ]
    assert all(len(set(pair)) == 2 for pair in chosen)
    assert len(set(chosen)) == 15, "each of the 15 pairs of 6 coordinates comes up"
    B = SUBSPACE.basis(block(6), 2, {}, None, generator(0, 0, "basis"))
    assert torch.equal(B.T @ B, torch.eye(2, dtype=torch.float64))


def test_offers_every_coordinate():
    assert SUBSPACE.rank(block(3), {}, None) == 3
    assert SUBSPACES["full"].name == "full"
