"""Sweeps: numba and plain torch end at the same bits, costs stay exact, and draws follow the law that is documented."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.kernels.clause_sweep import ClauseLayout, Draws, cpu, reference
from lightning_polystep.maxsat import WeightedCNF, random_ksat
from lightning_polystep.maxsat.search import Search
from tests.maxsat.formulas import formulas


def swept(implementation, formula, draws, *, coloured, seed=0):
    search = Search(formula, coloured=coloured)
    search.go_to(np.random.default_rng(seed).random(formula.variables) < 0.5)
    implementation.clause_sweep(search._state.values, search._state, search.layout, draws)
    return search


@pytest.mark.parametrize("metropolis", [True, False], ids=["metropolis", "heat bath"])
@pytest.mark.parametrize("coloured", [True, False], ids=["coloured", "by number"])
@given(formula=formulas(hard=True), seed=st.integers(0, 2**63 - 1), temperature=st.sampled_from([0.05, 1.0, 30.0]))
def test_both_implementations_end_at_the_same_bits_and_at_a_recount(metropolis, coloured, formula, seed, temperature):
    draws = Draws(temperature, metropolis, 0.8, seed, range(3, 6))
    fast, slow = (swept(each, formula, draws, coloured=coloured) for each in (cpu, reference))
    recounted = Search(formula)
    recounted.go_to(fast.values)
    for other in (slow, recounted):
        assert np.array_equal(fast.values, other.values)
        assert np.array_equal(fast.costs, other.costs)
        assert (fast.cost, fast.violated, fast.penalised) == (other.cost, other.violated, other.penalised)
    assert fast.flips == slow.flips
    assert np.array_equal(fast.layout.records, slow.layout.records)


def test_large_weights_are_counted_in_64_bits():
    formula = WeightedCNF.of([[1, 2], [-1], [-2], [1]], weights=[2**40, 3, 2**50, 2**41])
    draws = Draws(1.0, True, 1.0, 7, range(20))
    search = swept(cpu, formula, draws, coloured=False)
    assert search.costs.dtype == np.int64
    assert search.cost == formula.cost(search.values) == 3


def test_variables_of_one_clause_have_different_colours():
    formula = random_ksat(300, 4.0, seed=2)
    layout = Search(formula, coloured=True).layout
    group = np.empty(300, int)
    group[layout.order] = np.searchsorted(layout.ends, np.arange(300), side="right")
    of_clause = np.sort(group[np.abs(formula.literals).reshape(-1, 3) - 1], axis=1)
    assert bool((np.diff(of_clause, axis=1) > 0).all())
    assert sorted(layout.order.tolist()) == list(range(300))
    assert len(layout.ends) < 40


@pytest.mark.parametrize(("metropolis", "chance"), [(True, np.exp(-1.5)), (False, 1 / (1 + np.exp(1.5)))])
def test_flips_that_cost_something_have_the_chance_that_is_documented(metropolis, chance):
    many = 20_000
    formula = WeightedCNF.of([[-v] for v in range(1, many + 1)], weights=[3] * many)
    search = Search(formula)
    cpu.clause_sweep(search._state.values, search._state, search.layout, Draws(2.0, metropolis, 0.5, 1, range(1)))
    assert search.flips / many == pytest.approx(0.5 * chance, abs=0.01)


def test_a_draw_depends_on_the_sweep_and_not_on_how_many_are_made_at_once():
    formula = random_ksat(200, 4.27, seed=1)
    whole = swept(cpu, formula, Draws(0.5, True, 1.0, 3, range(6)), coloured=False)
    parts = Search(formula)
    parts.go_to(np.random.default_rng(0).random(200) < 0.5)
    for sweep in range(6):
        parts.sweep(Draws(0.5, True, 1.0, 3, range(sweep, sweep + 1)))
    assert np.array_equal(whole.values, parts.values)
    other = swept(cpu, formula, Draws(0.5, True, 1.0, 4, range(6)), coloured=False)
    assert not np.array_equal(whole.values, other.values)


def test_records_of_three_literals_lie_within_a_cache_line():
    layout = Search(random_ksat(50, 4.0)).layout
    assert layout.records.ctypes.data % 64 == 0
    assert set(np.diff(layout.offsets) * layout.records.itemsize) == {32}
    assert isinstance(layout, ClauseLayout)
    assert torch.from_numpy(layout.records).dtype == torch.int32
