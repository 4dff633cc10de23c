"""The benchmark of MAX-SAT runs, and its ways stand in the order that is known of them."""

import numpy as np

from benchmarks.maxsat import majority
from lightning_polystep.maxsat import WeightedCNF


def test_it_runs_and_search_beats_descent(quick):
    found = quick("maxsat")["1000"]
    shares = [found[way]["median"] for way in ("random", "majority", "greedy", "ours")]
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0


def test_the_majority_of_signs():
    formula = WeightedCNF.of([[1, -2], [1, -2], [-1, 2], [-3]])
    assert np.array_equal(majority(formula), [True, False, False])
