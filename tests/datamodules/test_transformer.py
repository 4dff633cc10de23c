"""The simulated series against its formula, hour by hour."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.transformer import transformer_series


def test_it_is_a_function_of_its_seed():
    first = transformer_series(50, seed=3)
    torch.manual_seed(1)
    assert torch.equal(transformer_series(50, seed=3), first)
    assert not torch.equal(transformer_series(50, seed=3), transformer_series(50, seed=4))


@given(seed=st.integers(0, 1000))
def test_the_oil_follows_the_load_by_the_top_oil_equation(seed):
    load, ambient, oil = transformer_series(60, seed).T.tolist()
    for hour in range(59):
        rise = ((1 + 6 * load[hour] ** 2) / 7) ** 0.8 * 52 + ambient[hour]
        expected = oil[hour] + (1 - math.exp(-1 / 2.5)) * (rise - oil[hour])
        assert math.isclose(oil[hour + 1], expected, rel_tol=1e-9)


def test_weekends_and_nights_are_quiet_and_summers_are_warm():
    load, ambient, _ = transformer_series(8760).T
    by_day = load[:8736].reshape(52, 7, 24)
    assert by_day[:, 5:].mean() < 0.85 * by_day[:, :5].mean()
    assert by_day[..., 3].mean() < 0.6 * by_day[..., 15].mean()
    assert ambient[24 * 180 : 24 * 220].mean() > ambient[: 24 * 40].mean() + 10
