"""Vectors of numba against NumPy."""

import numpy as np
import pytest
from numba import njit

from lightning_polystep.kernels.simd import (
    LANES,
    differ,
    element,
    increment,
    load,
    lookup,
    splat,
    store,
    to_float64,
    total,
    where,
)


@njit
def _arithmetic(a, b, out):
    x, y = load(a, 1), load(b, 0)
    store(out, 0, where(x >= y, x * y - x, x + splat(a[0])))
    return total(x), element(a, 2)


@njit
def _integers(counts, table, out):
    k = load(counts, 0)
    more = increment(k, load(table, 0) >= splat(table[3]))
    store(out, 0, lookup(table, 1, k) + to_float64(more))
    return differ(k, more), differ(k, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_lanes(dtype):
    a = np.random.randn(LANES + 1).astype(dtype)
    b, out = np.random.randn(LANES).astype(dtype), np.empty(LANES, dtype)
    sum_, third = _arithmetic(a, b, out)
    x = a[1:]
    assert np.array_equal(out, np.where(x >= b, x * b - x, x + a[0]))
    assert sum_ == pytest.approx(x.sum(), rel=1e-5)
    assert third == a[2]


def test_integer_lanes():
    table, out = np.random.randn(LANES + 1), np.empty(LANES)
    counts = np.random.randint(0, LANES, LANES).astype(np.int32)
    assert _integers(counts, table, out) == (True, False)
    assert np.array_equal(out, table[1 + counts] + counts + (table[:LANES] >= table[3]))
