"""Half of the directions follow what the rows have lately done."""

import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.subspaces import AdaptiveSubspace

SUBSPACE = AdaptiveSubspace()


def guided(moves, rank=4, scale=1.0):
    block = Block("block", (), (), {}, len(moves), moves.shape[1], "adaptive", scale=scale)
    plain = SUBSPACE.basis(block, rank, {}, None, generator(0, 0, "basis"))
    return plain, SUBSPACE.guided(plain, block, moves, generator(0, 0, "turn"))


def test_half_of_the_directions_span_the_strongest_moves():
    strong = torch.randn(2, 9).double()
    moves = torch.randn(5, 2).double() @ strong
    plain, B = guided(moves, scale=0.5)
    assert torch.equal(B[:, 2:], plain[:, 2:])
    torch.testing.assert_close(B[:, :2].T @ B[:, :2], 0.25 * torch.eye(2, dtype=torch.float64))
    rest = B[:, :2] - torch.linalg.pinv(strong) @ strong @ B[:, :2]
    assert float(rest.abs().max()) < 1e-9


def test_one_row_gives_one_direction_and_no_move_none():
    plain, B = guided(torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(B[:, 0].abs(), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).double())
    assert torch.equal(B[:, 1:], plain[:, 1:])
    plain, B = guided(torch.zeros(3, 5))
    assert torch.equal(B, plain)


def test_a_run_follows_its_own_moves():
    x, y = torch.randn(32, 12), torch.randint(2, (32,))
    network = nn.Linear(12, 2)
    optimizer = PolyStep(network.parameters(), subspace="adaptive", rank=4, lr=0.3, seed=0)
    engine = Engine(network, optimizer, announce=None)
    for _ in range(3):
        engine.step(lambda: nn.functional.cross_entropy(network(x), y))
    (block,) = optimizer.blocks(network)
    directions = optimizer.propose(block, rank=4).directions[0].double()
    moves = optimizer._moves(block).double()
    inside = torch.linalg.pinv(directions[:4]) @ directions[:4]
    torch.testing.assert_close(moves @ inside, moves, atol=1e-4, rtol=1e-3)
