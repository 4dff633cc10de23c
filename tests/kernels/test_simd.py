"""Vectors of numba against NumPy."""

import numpy as np
import pytest
from numba import njit

from lightning_polystep.kernels.simd import (
    LANES,
    bits,
    differ,
    element,
    highest,
    increment,
    load,
    lookup,
    lowest_bit,
    mark,
    power_of_two,
    put,
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
    put(out, LANES, element(b, 3))
    return total(x), element(a, 2)


@njit
def _integers(counts, table, out):
    k = load(counts, 0)
    more = increment(k, load(table, 0) >= splat(table[3]))
    store(out, 0, lookup(table, 1, k) + to_float64(more))
    return differ(k, more), differ(k, k)


@njit
def _bits(a, out):
    mask = load(a, 0) >= splat(a[1])
    store(out, 0, mark(load(out, 0), mask, splat(np.int64(1) << 63)))
    different = bits(load(a, 0) != splat(a[1]))
    return bits(mask), different, lowest_bit(bits(mask) << 40), lowest_bit(np.int64(1) << 63)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_lanes(dtype):
    a = np.random.randn(LANES + 1).astype(dtype)
    b, out = np.random.randn(LANES).astype(dtype), np.empty(LANES + 1, dtype)
    sum_, third = _arithmetic(a, b, out)
    x = a[1:]
    assert np.array_equal(out[:LANES], np.where(x >= b, x * b - x, x + a[0]))
    assert out[LANES] == b[3]
    assert sum_ == pytest.approx(x.sum(), rel=1e-5)
    assert third == a[2]


def test_integer_lanes():
    table, out = np.random.randn(LANES + 1), np.empty(LANES)
    counts = np.random.randint(0, LANES, LANES).astype(np.int32)
    assert _integers(counts, table, out) == (True, False)
    assert np.array_equal(out, table[1 + counts] + counts + (table[:LANES] >= table[3]))


def test_bits():
    a, out = np.random.randn(LANES).astype(np.float32), np.arange(LANES)
    chosen = a >= a[1]
    packed, different, lowest, highest = _bits(a, out)
    assert packed == sum(1 << lane for lane in range(LANES) if chosen[lane])
    assert different == sum(1 << lane for lane in range(LANES) if lane != 1)
    assert lowest == 40 + int(np.flatnonzero(chosen)[0])
    assert highest == 63
    assert np.array_equal(out, np.where(chosen, np.arange(LANES) + np.iinfo(np.int64).min, np.arange(LANES)))


@njit
def _reductions(a, b, out):
    store(out, 0, power_of_two(to_float64(load(a, 0)) + splat(1.5 * 2.0**52)))
    store(out, LANES, to_float64(load(b, 0)) / to_float64(load(b, 1)))
    return highest(load(b, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers_quotients_and_the_highest_lane(dtype):
    a, b = np.arange(-1022, 1023, 2044 // (LANES - 1))[:LANES].astype(np.float64), np.random.randn(LANES + 1)
    b, out = b.astype(dtype), np.empty(2 * LANES)
    assert _reductions(a, b, out) == b[:LANES].max()
    assert np.array_equal(out[:LANES], 2.0**a)
    assert np.array_equal(out[LANES:], b[:LANES].astype(np.float64) / b[1:].astype(np.float64))
