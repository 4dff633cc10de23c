"""ProbSAT, the rival: its counts are true, it finds what is planted, and it says what it does not take."""

import itertools

import numpy as np
import pytest

from benchmarks.prob_sat import PUBLISHED, Setting, prob_sat
from lightning_polystep.maxsat import WeightedCNF, random_ksat


def ticks():
    """A clock by which every look takes a second, so that runs end alike on every machine."""
    return itertools.count().__next__


@pytest.mark.parametrize("k", [3, 5])
def test_it_satisfies_planted_formulas(k):
    formula = random_ksat(200, 3.0 if k == 3 else 8.0, k=k, seed=1, planted=True)
    values, path = prob_sat(formula, PUBLISHED[k], 2, 20.0, ticks())
    assert formula.cost(values) == path[-1][1] == 0


def test_what_it_counts_is_so_and_never_rises():
    formula = random_ksat(3000, 5.0, seed=3)
    values, path = prob_sat(formula, Setting(True, 3.5), 0, 6.0, ticks())
    counts = [count for _, count in path]
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0] / 5
    # The walk goes on beyond its best, and its assignment is not far from it.
    assert counts[-1] <= formula.cost(values) < counts[0] / 3
    again, _ = prob_sat(formula, Setting(True, 3.5), 0, 6.0, ticks())
    assert np.array_equal(values, again)


def test_weights_are_refused():
    with pytest.raises(ValueError, match="soft clauses of weight 1"):
        prob_sat(WeightedCNF.of([[1]], weights=[2]), PUBLISHED[3], 0, 1.0)
