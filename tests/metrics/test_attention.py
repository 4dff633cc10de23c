"""Choices of hard attention, by sets and loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.functional import argmax_attention
from lightning_polystep.functional.attention import attention_scores
from lightning_polystep.metrics import AttentionCoverage, TieRate


@given(
    leading=st.lists(st.integers(1, 4), max_size=2),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_equal_sets_and_loops(leading, queries, keys, seed):
    draw = torch.Generator().manual_seed(seed)
    coverage, ties = AttentionCoverage(), TieRate()
    chosen = there = tied = choices = 0
    for _ in range(2):
        # Small whole numbers, so that ties occur; half of the keys are masked, so that some queries take none.
        tokens = [torch.randint(-2, 3, (*leading, size, 2), generator=draw).float() for size in (queries, keys)]
        mask = torch.rand(*leading, queries, keys, generator=draw) < 0.5
        indices = argmax_attention(*tokens, tokens[1], mask, return_indices=True).indices
        scores = attention_scores(*tokens, mask)
        coverage.update(indices, keys, mask.any(-2))
        ties.update(scores)
        rows = zip(indices.reshape(-1, queries), mask.reshape(-1, queries, keys), strict=True)
        for row, allowed in rows:
            chosen += len({key for key in row.tolist() if key >= 0})
            there += sum(any(allowed[:, key].tolist()) for key in range(keys))
        for row in scores.reshape(-1, keys).tolist():
            best = max(row)
            choices += best > float("-inf")
            tied += best > float("-inf") and row.count(best) > 1
    if there:
        assert float(coverage.compute()) == pytest.approx(chosen / there, rel=1e-6)
        assert float(ties.compute()) == pytest.approx(tied / choices, rel=1e-6)
    else:
        assert coverage.compute().isnan()
        assert ties.compute().isnan()


def test_all_keys_are_available_by_default():
    plain, masked = AttentionCoverage(), AttentionCoverage()
    indices = torch.tensor([[2, 3, 3], [2, 2, 2]])
    plain.update(indices, 4)
    masked.update(indices, 4, torch.tensor([False, False, True, True]))  # padding on the left
    assert (float(plain.compute()), float(masked.compute())) == (0.375, 0.75)


def test_without_ties_there_are_none_and_a_single_key_is_no_tie():
    ties = TieRate()
    ties.update(torch.randn(50, 1))
    ties.update(torch.arange(12.0).reshape(3, 4))
    assert float(ties.compute()) == 0.0


def test_what_does_not_fit_is_refused():
    coverage = AttentionCoverage()
    with pytest.raises(TypeError, match=r"^AttentionCoverage: indices must be integers, got torch.float32[.]$"):
        coverage.update(torch.ones(2), 3)
    with pytest.raises(ValueError, match=r"^AttentionCoverage: indices must be \(..., L\), got a scalar[.]$"):
        coverage.update(torch.tensor(1), 3)
    with pytest.raises(ValueError, match=r"^AttentionCoverage: indices must be -1 to 2, got -2 to 3[.]$"):
        coverage.update(torch.tensor([-2, 3]), 3)
    with pytest.raises(ValueError, match=r"^AttentionCoverage: available of shape \(2,\) does not broadcast"):
        coverage.update(torch.tensor([0, 1]), 3, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^TieRate: scores must be .*, got \(2, 0\)[.]$"):
        TieRate().update(torch.ones(2, 0))
