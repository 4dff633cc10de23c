"""The benchmark of MAX-SAT runs, and its ways stand in the order that is known of them."""

import numpy as np

from benchmarks.maxsat import majority
from lightning_polystep.maxsat import WeightedCNF


def test_it_runs_and_search_beats_descent(quick):
    found = quick("maxsat")["1000"]
    shares = [found[way]["median"] for way in ("random", "majority", "greedy", "ours")]
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0
    assert found["greedy"]["median"] < found["probSAT tuned"]["median"] <= 1.0
    for way in ("ours", "probSAT published", "probSAT tuned"):
        path = [share["median"] for _, share in found["paths"][way]]
        assert path == sorted(path)
        assert path[-1] == found[way]["median"]


def test_the_majority_of_signs():
    formula = WeightedCNF.of([[1, -2], [1, -2], [-1, 2], [-3]])
    assert np.array_equal(majority(formula), [True, False, False])
