"""Two vertices are treated apart for speed alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightning_polystep.transport.vertices import softmax_over_vertices, sum_over_vertices

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
NUMBERS = arrays.arrays("float64", SHAPES, elements=st.floats(-1e3, 1e3))


@given(values=NUMBERS)
def test_sums_are_those_of_torch(values):
    values = torch.from_numpy(values)
    torch.testing.assert_close(sum_over_vertices(values), values.sum(-1, keepdim=True))


@given(logits=NUMBERS)
def test_so_is_the_softmax(logits):
    logits = torch.from_numpy(logits)
    found = softmax_over_vertices(logits)
    torch.testing.assert_close(found, logits.softmax(-1), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("vertices", [2, 3])
def test_what_costs_infinitely_much_gets_nothing(vertices):
    logits = torch.zeros(3, vertices)
    logits[0, 0] = logits[1, 1] = logits[2] = -math.inf
    found = softmax_over_vertices(logits)
    assert found[0, 0] == found[1, 1] == 0
    assert found[2].isnan().all()
