"""A whole layer moves along matrices of low rank."""

import torch
from torch import nn

from lightning_polystep import PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import FactoredSubspace


def blocks_of(module):
    return find_blocks(module, PolyStep(module.parameters(), subspace="factored").param_groups)


def basis(block, rank, seed=0):
    return FactoredSubspace().basis(block, rank, {}, None, generator(seed, 0, "basis"))


def test_directions_of_a_weight_are_of_rank_four():
    (block,) = blocks_of(nn.Linear(14, 20))
    B = basis(block, 5)
    assert B.shape == (300, 5)
    assert torch.linalg.matrix_rank(B[:280].T.reshape(5, 20, 14)).tolist() == [4] * 5
    assert torch.linalg.matrix_rank(B) == 5


def test_a_convolution_is_a_matrix_of_its_output_channels():
    (block,) = blocks_of(nn.Conv2d(3, 8, 3, bias=False))
    assert torch.linalg.matrix_rank(basis(block, 2).T.reshape(2, 8, 27)).tolist() == [4, 4]


def test_a_unit_of_radius_moves_every_units_preactivation_by_about_one():
    (block,) = blocks_of(nn.Linear(14, 20, bias=False))
    moves = torch.cat([basis(block, 4, seed).T for seed in range(75)]).reshape(300, 20, 14)
    assert abs(float(moves.square().sum(-1).mean()) - 1) < 0.05
