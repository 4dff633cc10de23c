"""One particle of all parameters: orthogonal directions, each layer in its own scale."""

import torch
from torch import nn

from lightning_polystep.joining import joined
from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import SUBSPACES, JointSubspace

SUBSPACE = JointSubspace()


def block():
    weights = [nn.Parameter(torch.zeros(20, 15)), nn.Parameter(torch.zeros(3, 60))]
    parts = [Block(str(i), (w,), (f"{i}.weight",), {}, *w.shape, "joint") for i, w in enumerate(weights)]
    shared = parts[0].group
    for part in parts:
        part.group = shared
    return joined(parts)[0]


def basis(rank, seed=0):
    return SUBSPACE.basis(block(), rank, {}, None, generator(seed, 0, "basis"))


def test_directions_are_orthogonal_in_units_of_each_layer():
    B = basis(6)
    assert B.shape == (480, 6)
    assert B.dtype == torch.float64
    units = torch.cat([torch.full((300,), 15**0.5), torch.full((180,), 60**0.5)]).double()
    whitened = units[:, None] * B / 480**0.5
    torch.testing.assert_close(whitened.T @ whitened, torch.eye(6, dtype=torch.float64))


def test_a_unit_of_radius_moves_every_units_preactivation_by_about_one():
    moves = torch.stack([basis(1, seed)[:, 0] for seed in range(300)])
    for part, width in ((moves[:, :300], 15), (moves[:, 300:], 60)):
        shifts = part.reshape(300, -1, width).square().sum(-1)  # mean square for inputs of mean square 1
        assert abs(float(shifts.mean()) - 1) < 0.05


def test_it_is_a_function_of_the_draw_and_has_all_directions():
    assert torch.equal(basis(3), basis(3))
    assert not torch.equal(basis(3), basis(3, seed=1))
    assert SUBSPACE.rank(block(), {}, None) == 480
    assert SUBSPACES["joint"].is_rotated
