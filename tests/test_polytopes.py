"""Regular polytopes, by their Gram matrices, and rotations from the Haar measure, by their moments."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.polytopes import POLYTOPES, biased_rotation, cube, haar_rotation, orthoplex, simplex

DIMS = st.integers(1, 12)
EXACT = {"rtol": 0, "atol": 1e-12}


@given(DIMS, st.sampled_from(sorted(POLYTOPES)))
def test_vertices_have_norm_one_and_sum_to_zero(dim, name):
    polytope = POLYTOPES[name]
    vertices = polytope.vertices(dim)
    assert polytope.name == name
    assert vertices.shape == (polytope.count(dim), dim)
    assert vertices.dtype == torch.float64
    torch.testing.assert_close(vertices.norm(dim=1), torch.ones(len(vertices), dtype=torch.float64), **EXACT)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(dim, dtype=torch.float64), **EXACT)


@given(DIMS, st.sampled_from(sorted(POLYTOPES)))
def test_no_direction_is_preferred(dim, name):
    """V^T V is a multiple of the identity: a linear cost moves the barycentre straight downhill."""
    vertices = POLYTOPES[name].vertices(dim)
    moment = vertices.T @ vertices * dim / len(vertices)
    torch.testing.assert_close(moment, torch.eye(dim, dtype=torch.float64), **EXACT)


@given(DIMS)
def test_the_simplex_has_equal_angles(dim):
    gram = torch.full((dim + 1, dim + 1), -1.0 / dim, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(simplex(dim) @ simplex(dim).T, gram, **EXACT)


@given(DIMS)
def test_the_orthoplex_has_opposite_pairs_at_right_angles(dim):
    axes = torch.eye(dim, dtype=torch.float64)
    gram = torch.cat([torch.cat([axes, -axes], 1), torch.cat([-axes, axes], 1)])
    assert torch.equal(orthoplex(dim) @ orthoplex(dim).T, gram)


@given(DIMS)
def test_the_cube_has_every_sign_once(dim):
    signs = cube(dim) * math.sqrt(dim)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), **EXACT)
    corners = {tuple(corner) for corner in signs.sign().int().tolist()}
    assert corners == set(itertools.product((-1, 1), repeat=dim))


@given(st.integers(1, 8))
def test_the_cube_has_the_inner_products_of_differing_signs(dim):
    corners = cube(dim)
    differing = (corners[:, None].sign() != corners[None].sign()).sum(-1)
    torch.testing.assert_close(corners @ corners.T, 1 - 2 * differing.double() / dim, **EXACT)


def test_a_cube_of_too_many_corners_is_refused():
    assert cube(16).shape == (65_536, 16)
    with pytest.raises(ValueError, match=r"2\*\*17 corners: set particle_dim to at most 16"):
        cube(17)


@given(st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_rotations_are_orthogonal(dim, seed):
    rotation = haar_rotation(dim, torch.Generator().manual_seed(seed))
    assert rotation.dtype == torch.float64
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(dim, dtype=torch.float64), **EXACT)


def test_rotations_are_a_function_of_the_generator():
    first, again, other = (haar_rotation(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_rotations_follow_the_haar_measure(dim):
    """Moments of 4,000 draws within five standard errors; a QR without its signs fixed fails at each dimension."""
    draws, generator = 4000, torch.Generator().manual_seed(0)
    rotations = torch.stack([haar_rotation(dim, generator) for _ in range(draws)])
    bound = 5 / math.sqrt(draws)
    # Both components of the orthogonal group are equally likely.
    assert abs(torch.linalg.det(rotations).round().mean()) < bound
    # An entry is a coordinate of a uniform point on the sphere: mean 0, second moment 1/d, fourth 3/(d (d + 2)).
    assert rotations.mean(0).abs().max() < bound
    assert (rotations.square().mean(0) - 1 / dim).abs().max() < bound
    assert (rotations.pow(4).mean(0) - 3 / (dim * (dim + 2))).abs().max() < bound
    # The measure does not change when a rotation is applied: the trace has mean 0 and variance 1 (here d = 1 included).
    traces = rotations.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(traces.mean()) < bound
    assert abs(traces.square().mean() - 1) < 2 * bound


@pytest.mark.parametrize("name", POLYTOPES)
def test_what_a_polytope_says_of_its_vertices_is_true(name):
    polytope = POLYTOPES[name]
    vertices = polytope.vertices(4)
    half = len(vertices) // 2
    assert len(vertices) == polytope.count(4)
    assert polytope.mirrored == torch.equal(vertices[half:], -vertices[:half])
    assert polytope.axial == torch.equal(vertices[:half], torch.eye(4, dtype=torch.float64))


@given(dim=st.integers(1, 6), bias=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_biased_rotation_is_a_rotation_that_leans(dim, bias, seed):
    draw = torch.Generator().manual_seed(seed)
    rotation = haar_rotation(dim, draw)
    towards = torch.randn(dim, generator=draw, dtype=torch.float64)
    leaning = biased_rotation(rotation, towards, bias)
    torch.testing.assert_close(leaning @ leaning.T, torch.eye(dim, dtype=torch.float64))
    unit = towards / towards.norm()
    assert float(leaning[0] @ unit) >= float(rotation[0] @ unit) - 1e-9
    if bias == 1:
        torch.testing.assert_close(leaning[0], unit)


def test_no_bias_and_no_direction_leave_a_rotation_alone():
    rotation = haar_rotation(3, torch.Generator().manual_seed(0))
    assert torch.equal(biased_rotation(rotation, torch.ones(3, dtype=torch.float64), 0.0), rotation)
    assert torch.equal(biased_rotation(rotation, torch.zeros(3, dtype=torch.float64), 0.7), rotation)
