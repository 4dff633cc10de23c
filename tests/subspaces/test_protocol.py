"""What every subspace promises, whichever it is."""

import inspect

import pytest
import torch

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.sites import update_statistics
from lightning_polystep.subspaces import SUBSPACES, Subspace

DIM = 6
GROUP = {"whitening": 0.35, "span_floor": 0.01}


def block():
    return Block("block", (), (), GROUP, 4, DIM, "any")


def statistics():
    X = torch.randn(40, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return update_statistics(None, X.T @ X / len(X))


def basis(subspace, rank, step=0):
    return subspace.basis(block(), rank, GROUP, statistics(), generator(0, step, "basis/block"))


def arguments(owner, name):
    return list(inspect.signature(getattr(owner, name)).parameters)


@pytest.fixture(params=sorted(SUBSPACES))
def subspace(request):
    return SUBSPACES[request.param]


def test_is_known_by_its_name_and_has_the_methods_of_the_protocol(subspace):
    assert SUBSPACES[subspace.name] is subspace
    for name in ("rank", "basis"):
        assert arguments(type(subspace), name) == arguments(Subspace, name)


@pytest.mark.parametrize("rank", [1, 3, DIM])
def test_gives_as_many_independent_directions_as_it_is_asked_for(subspace, rank):
    assert subspace.rank(block(), GROUP, statistics()) == DIM
    B = basis(subspace, rank)
    assert B.shape == (DIM, rank)
    assert B.dtype == torch.float64
    assert torch.linalg.matrix_rank(B) == rank


def test_is_a_function_of_the_draw_alone(subspace):
    before = torch.get_rng_state()
    first = basis(subspace, 3)
    torch.randn(5)
    assert torch.equal(basis(subspace, 3), first)
    torch.set_rng_state(before)
    basis(subspace, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_columns_are_of_about_one_unit_of_radius(subspace):
    lengths = basis(subspace, DIM).norm(dim=0)
    assert float(lengths.min()) > 0.3
    assert float(lengths.max()) < 3
