"""The exponential and the logarithm of vectors against NumPy's."""

import hypothesis.extra.numpy as stn
import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from numba import njit

from lightning_polystep.kernels.elementary import exp, log1p
from lightning_polystep.kernels.simd import LANES, load, store


@njit
def _exp(x, out):
    store(out, 0, exp(load(x, 0)))


@njit
def _log1p(x, out):
    store(out, 0, log1p(load(x, 0)))


def run(function, x):
    out = np.empty(LANES)
    function(x, out)
    return out


def lanes(lowest, highest):
    return stn.arrays(np.float64, LANES, elements=st.floats(lowest, highest, allow_subnormal=False))


def units_in_the_last_place(found, expected):
    return np.abs(found - expected) / np.spacing(expected)


@given(lanes(-700.0, 700.0) | lanes(-1.0, 1.0))
def test_exp(x):
    assert units_in_the_last_place(run(_exp, x), np.exp(x)).max() <= 2


@given(lanes(0.0, 1.0))
def test_log1p(y):
    assert units_in_the_last_place(run(_log1p, y), np.log1p(y)).max() <= 4


def test_ends():
    x = np.array([0.0, -0.0, -700.0, -1e30, -np.inf, np.nan] + [0.0] * (LANES - 6))
    found = run(_exp, x)
    assert found[:2].tolist() == [1.0, 1.0]
    assert np.array_equal(found[2:5], np.full(3, run(_exp, np.full(LANES, -700.0))[0]))
    assert np.isnan(found[5])
    assert np.isnan(run(_log1p, x)[5])
