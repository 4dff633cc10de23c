"""Shaped losses."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.baselines.shaping import centred_ranks, raw, standardised

LOSSES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12)


@given(LOSSES)
def test_ranks_are_those_counted_one_by_one(values):
    losses = torch.tensor(values, dtype=torch.float64)
    expected = [
        (sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2) / (len(values) - 1) - 0.5 for v in values
    ]
    torch.testing.assert_close(centred_ranks(losses), torch.tensor(expected, dtype=torch.float64))


@given(LOSSES)
def test_standardised_losses_have_mean_zero_and_variance_one_or_are_all_zero(values):
    shaped = standardised(torch.tensor(values, dtype=torch.float64))
    assert abs(float(shaped.mean())) < 1e-9
    expected = 0.0 if len(set(values)) == 1 else 1.0
    assert abs(float(shaped.square().mean()) - expected) < 1e-9


def test_one_loss_has_no_rank_and_raw_losses_stay():
    assert centred_ranks(torch.tensor([3.0])).tolist() == [0.0]
    assert raw(torch.tensor([3.0, 1.0])).tolist() == [3.0, 1.0]
