"""Perturbations have the moments that their estimators ask for."""

import pytest
import torch

from lightning_polystep.noise import gaussian, low_rank, rademacher

SHAPES = [torch.Size([3]), torch.Size([4, 2, 3])]


def low_rank_2(shapes, count, draw):
    return low_rank(shapes, count, draw, rank=2)


@pytest.mark.parametrize("noise", [gaussian, rademacher, low_rank_2])
def test_numbers_are_uncorrelated_with_mean_zero_and_variance_one(noise):
    z = noise(SHAPES, 20_000, torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 27)
    assert z.mean(0).abs().max() < 0.05
    assert (z.T @ z / len(z) - torch.eye(27, dtype=torch.float64)).abs().max() < 0.1


def test_low_rank_matrices_have_that_rank_and_vectors_are_free():
    z = low_rank([torch.Size([3]), torch.Size([4, 6])], 5, torch.Generator().manual_seed(0), rank=2)
    assert torch.linalg.matrix_rank(z[:, 3:].reshape(5, 4, 6)).tolist() == [2] * 5
    assert torch.linalg.matrix_rank(z[:, :3]) == 3
