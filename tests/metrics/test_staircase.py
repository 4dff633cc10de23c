"""Levels, by a dictionary of counts."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.layers import Heaviside, QuantActivation, Sign, Staircase
from lightning_polystep.metrics import LevelOccupancy

LAYERS = [
    Staircase(),
    Staircase(7, rounding="round", squash="tanh"),
    Staircase(3, squash="clamp"),
    Sign(),
    Heaviside(),
    QuantActivation(3, scale=0.3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), width=st.integers(1, 4))
def test_equals_a_counter(layer, dtype, sizes, width):
    levels = layer.levels(dtype)
    occupancy, counter = LevelOccupancy(levels), Counter()
    for samples in sizes:
        outputs = layer(3 * torch.randn(samples, width).to(dtype))
        occupancy.update(outputs)
        counter.update(outputs.flatten().tolist())
    total, value = sum(counter.values()), occupancy.compute()
    shares = [counter[level] / total for level in levels.tolist()]
    assert value["share"].tolist() == pytest.approx(shares, rel=1e-6)
    assert float(value["used"]) == pytest.approx(len(counter) / len(levels), rel=1e-6)
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(len(levels))
    assert float(value["entropy"]) == pytest.approx(entropy, abs=1e-6)


def test_levels_of_another_dtype_are_the_same_levels():
    layer = Staircase()
    for levels, outputs in (
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.half),
    ):
        occupancy = LevelOccupancy(layer.levels(levels))
        occupancy.update(layer(torch.linspace(-9, 9, 50).to(outputs)))
        assert float(occupancy.compute()["used"]) == pytest.approx(5 / 6)


def test_other_outputs_are_refused_and_nan_is_left_out():
    occupancy = LevelOccupancy([0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"^LevelOccupancy: the outputs must be among the 3 levels, got others[.]$"):
        occupancy.update(torch.tensor([0.0, 0.25]))
    with pytest.raises(ValueError, match="among the 3 levels"):
        occupancy.update(torch.tensor([1.5]))
    occupancy.update(torch.tensor([torch.nan, 1.0]))
    assert occupancy.compute()["share"].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("levels", [[], [1.0, 0.0], [0.0, 0.0]])
def test_levels_have_to_increase(levels):
    with pytest.raises(ValueError, match=r"^LevelOccupancy: levels must be increasing, at least one, got .*[.]$"):
        LevelOccupancy(levels)


def test_one_level():
    occupancy = LevelOccupancy([2.0])
    occupancy.update(torch.full((3,), 2.0))
    assert [float(value) for value in occupancy.compute().values()] == [1.0, 1.0, 1.0]
