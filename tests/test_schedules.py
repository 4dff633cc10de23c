"""Schedules are functions of the step alone, from one end to the other and no further."""

import copy
import itertools
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.schedules import SCHEDULES, Constant, Cosine, Exponential, Linear, lowest, value_at

RAMPS = (Linear, Cosine, Exponential)
VALUES = st.floats(1e-3, 1e3)
STEPS = st.integers(1, 10_000)


@pytest.mark.parametrize("kind", RAMPS)
@given(start=VALUES, end=VALUES, steps=STEPS)
def test_a_way_begins_and_ends_where_it_says(kind, start, end, steps):
    schedule = kind(start, end, steps)
    assert schedule.at(0) == pytest.approx(start, rel=1e-12)
    assert schedule.at(steps) == schedule.at(steps + 1) == schedule.at(10**9) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("kind", RAMPS)
@given(start=VALUES, end=VALUES, steps=st.integers(1, 50))
def test_a_way_is_monotone_and_never_lower_than_it_says(kind, start, end, steps):
    schedule = kind(start, end, steps)
    values = [schedule.at(step) for step in range(steps + 2)]
    assert min(values) >= schedule.lowest * (1 - 1e-12)
    rising = 1 if end >= start else -1
    slack = 1e-12 * max(start, end)
    assert all(rising * (later - earlier) >= -slack for earlier, later in itertools.pairwise(values))


@given(start=VALUES, end=VALUES, steps=STEPS, step=st.integers(0, 10_000))
def test_values_are_those_of_the_formulas(start, end, steps, step):
    share = min(step / steps, 1)
    assert Linear(start, end, steps).at(step) == pytest.approx(start + share * (end - start))
    assert Cosine(start, end, steps).at(step) == pytest.approx(
        end + (start - end) * (1 + math.cos(math.pi * share)) / 2
    )
    assert Exponential(start, end, steps).at(step) == pytest.approx(start * (end / start) ** share)


def test_the_value_of_an_exponential_falls_by_one_factor():
    values = [Exponential(8.0, 0.5, steps=4).at(step) for step in range(5)]
    assert values == pytest.approx([8.0, 4.0, 2.0, 1.0, 0.5])


def test_a_number_is_its_own_schedule():
    assert value_at(2.0, 5) == value_at(Constant(2.0), 5) == 2.0
    assert lowest(2.0) == lowest(Constant(2.0)) == 2.0
    assert lowest(Linear(3.0, 1.0, 5)) == lowest(Linear(1.0, 3.0, 5)) == 1.0


@pytest.mark.parametrize("kind", RAMPS)
def test_a_way_of_no_step_is_refused(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(steps=0\): the way takes at least 1 step"):
        kind(1.0, 2.0, steps=0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, -2.0), (math.nan, 1.0)])
def test_a_factor_needs_ends_above_zero(start, end):
    with pytest.raises(ValueError, match="only above 0"):
        Exponential(start, end, steps=3)


def test_they_are_values():
    """Equal where their numbers are, and nobody changes one that several groups share."""
    schedule = Cosine(2.0, 0.5, steps=10)
    assert schedule == Cosine(2.0, 0.5, 10) == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
    assert schedule != Linear(2.0, 0.5, 10)
    with pytest.raises(AttributeError):
        schedule.start = 1.0


def test_they_are_known_by_their_names():
    assert sorted(SCHEDULES) == ["constant", "cosine", "exponential", "linear"]
