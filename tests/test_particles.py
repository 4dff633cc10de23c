"""Blocks split into parameters and join again; candidates are numbered row by row."""

import pytest
import torch
from torch import nn

from lightning_polystep.particles import Block, Proposal


def block(*shapes, rows, site=None):
    parameters = tuple(nn.Parameter(torch.randn(shape)) for shape in shapes)
    dim = sum(parameter.numel() for parameter in parameters) // rows
    return Block("b", parameters, tuple("abc"[: len(parameters)]), {}, rows, dim, "full", site=site)


SHAPES = [
    ([(3, 4)], 3),
    ([(3, 4), (3,)], 3),
    ([(5, 2, 3, 3), (5,)], 5),
    ([(7,)], 7),
    ([(6,)], 3),
    ([()], 1),
    ([(4, 3)], 6),
]


@pytest.mark.parametrize(("shapes", "rows"), SHAPES)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_split_is_the_inverse_of_join(shapes, rows, batch):
    subject = block(*shapes, rows=rows)
    table = torch.randn(*batch, rows, subject.dim)
    parts = subject.split(table)
    assert [part.shape for part in parts] == [(*batch, *shape) for shape in shapes]
    if not batch:
        assert torch.equal(subject.join(parts), table)


def test_a_row_is_the_incoming_weight_of_a_unit_with_its_bias_last():
    layer = nn.Conv2d(2, 3, (1, 2))
    subject = Block("c", (layer.weight, layer.bias), ("c.weight", "c.bias"), {}, 3, 5, "full", site=layer)
    rows = subject.join([layer.weight, layer.bias])
    for unit in range(3):
        assert torch.equal(rows[unit], torch.cat([layer.weight[unit].flatten(), layer.bias[unit : unit + 1]]))
    assert subject.has_bias


def test_only_a_site_has_a_bias_column():
    layer = nn.Linear(2, 2)
    assert not block((2, 2), rows=2, site=layer).has_bias
    assert not block((2, 2), (2,), rows=2).has_bias
    assert block((2, 2), (2,), rows=2, site=layer).has_bias


def test_a_block_is_trainable_while_all_of_it_is():
    subject = block((2, 2), (2,), rows=2)
    assert subject.trainable
    subject.parameters[1].requires_grad_(False)
    assert not subject.trainable


def proposal(rows=(0, 3, 4), particles=2, vertices=3, radius=0.5):
    directions = torch.randn(particles, vertices, 4)
    reach = torch.tensor([1.0, 2.0, 16.0])
    return Proposal(block((5, 4), rows=5), torch.tensor(rows), reach, directions, 2, radius)


def test_candidates_are_counted():
    subject = proposal()
    assert subject.vertices_per_row == 6
    assert subject.candidates == 18


@pytest.mark.parametrize(("start", "stop"), [(0, 18), (0, 1), (17, 18), (4, 13), (6, 6)])
def test_candidates_run_through_vertices_then_particles_then_rows(start, stop):
    subject = proposal()
    rows, displacements = subject.displacements(start, stop)
    by_hand = [
        (row, 0.5 * reach * subject.directions[particle, vertex])
        for row, reach in ((0, 1.0), (3, 2.0), (4, 16.0))
        for particle in range(2)
        for vertex in range(3)
    ][start:stop]
    assert rows.tolist() == [row for row, _ in by_hand]
    assert displacements.shape == (stop - start, 4)
    assert all(torch.equal(a, b) for a, (_, b) in zip(displacements, by_hand, strict=True))


def test_a_start_is_part_of_the_displacement():
    block = Block("b", (nn.Parameter(torch.zeros(2, 3)),), ("b",), {}, 2, 3, "full")
    starts = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    proposal = Proposal(block, torch.arange(2), torch.tensor([1.0, 2.0]), torch.eye(3)[None], 3, 0.5, starts=starts)
    with pytest.raises(ValueError, match="2 starts are scored start by start"):
        proposal.displacements(0, 1)
    up, down = proposal.from_each_start()
    assert up.displacements(0, 1)[1].tolist() == [[0.5, 0.0, 1.0]]
    assert down.displacements(4, 5)[1].tolist() == [[0.0, 1.0, -2.0]]
