"""The staircase against the paper's formula, against plain Python, and against its own list of levels."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import NonDifferentiableError, staircase
from lightning_polystep.functional.staircase import staircase_levels

ROUNDINGS, SQUASHES = ("floor", "round"), ("sigmoid", "clamp", "tanh")
PLAIN = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "clamp": lambda x: min(max(x, 0.0), 1.0),
    "tanh": math.tanh,
}


def test_default_is_the_formula_of_the_paper():
    x = 4 * torch.randn(10_000, dtype=torch.float64)
    assert torch.equal(staircase(x), torch.floor(torch.sigmoid(x) * 5) / 5)


@given(
    rounding=st.sampled_from(ROUNDINGS),
    squash=st.sampled_from(SQUASHES),
    levels=st.integers(1, 40),
    x=st.lists(st.floats(-30, 30), min_size=1, max_size=20),
)
def test_equals_plain_python(rounding, squash, levels, x):
    def plain(value):
        scaled = levels * PLAIN[squash](value)
        nearest = round(scaled)
        on_a_boundary = abs(scaled - nearest) < 1e-12 or abs(scaled % 1 - 0.5) < 1e-12
        return None if on_a_boundary else (math.floor(scaled) if rounding == "floor" else nearest) / levels

    output = staircase(torch.tensor(x, dtype=torch.float64), levels, rounding=rounding, squash=squash).tolist()
    for value, got in zip(x, output, strict=True):
        expected = plain(value)
        assert expected is None or got == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("squash", SQUASHES)
def test_values_are_the_levels_in_growing_order(squash, rounding, dtype):
    x = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    x = torch.cat([x, torch.linspace(-2, 2, 4_001, dtype=torch.float64)]).sort().values.to(dtype)
    output, levels = staircase(x, 3, rounding=rounding, squash=squash), staircase_levels(3, squash, dtype)
    assert output.dtype == levels.dtype == dtype
    assert torch.equal(output.unique(), levels)
    assert (output[1:] >= output[:-1]).all()


@pytest.mark.parametrize("squash", ["sigmoid", "tanh"])
def test_an_element_does_not_depend_on_its_place(squash):
    """Around each boundary, one float32 at a time and all together."""
    for k in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15):  # 8 is the boundary at 0, where floats are too dense
        centre = torch.tensor(math.log(k / (16 - k)) if squash == "sigmoid" else math.atanh(k / 16))
        x = (centre.view(torch.int32) + torch.arange(-20, 21, dtype=torch.int32)).view(torch.float32)
        together = staircase(x, 16, squash=squash)
        assert torch.equal(together, torch.stack([staircase(value, 16, squash=squash) for value in x]))


def test_ties():
    x = torch.tensor([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0])
    assert staircase(x, 2, squash="clamp").tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]
    assert staircase(x, 2, squash="clamp", rounding="round").tolist() == [0, 0, 0, 0.5, 1, 1, 1]


def test_nan_stays_nan():
    assert all(staircase(torch.tensor(torch.nan), squash=squash).isnan() for squash in SQUASHES)


def test_backward_raises_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match="hidden"):
        staircase(x, name="hidden").sum().backward()
    staircase(x, on_backward="zero").sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_vmap_equals_the_loop():
    x = torch.randn(5, 3)
    assert torch.equal(torch.func.vmap(staircase)(x), torch.stack([staircase(row) for row in x]))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, r"call \.float\(\)", {"x": torch.ones(3, dtype=torch.int64)}),
        (ValueError, "levels must be", {"levels": 0}),
        (ValueError, "levels must be", {"levels": 2.5}),
        (ValueError, "rounding must be", {"rounding": "ceil"}),
        (ValueError, "squash must be", {"squash": "relu"}),
        (ValueError, "on_backward must be", {"on_backward": "surrogate"}),
    ],
)
def test_bad_input_is_refused_in_one_sentence(error, message, changes):
    with pytest.raises(error, match=f"^hidden: .*{message}.*[.]$"):
        staircase(**{"x": torch.ones(3), "name": "hidden", **changes})
