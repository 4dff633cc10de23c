"""Axes are the same place by place, merged and cut without loss, or nothing is said of them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.tape.axes import Labels


def test_an_axis_of_one_place_has_no_label():
    assert Labels().fresh(1) == ()


def test_axes_of_other_sizes_are_not_the_same():
    labels = Labels()
    assert not labels.unify(labels.fresh(4), labels.fresh(6))


def test_a_merged_axis_is_taken_apart_by_what_it_meets():
    labels = Labels()
    merged, time, sample = labels.fresh(12), labels.fresh(3), labels.fresh(4)
    assert labels.unify(merged, (*time, *sample))
    assert labels.resolve(merged) == labels.resolve((*time, *sample))


def test_what_was_taken_apart_in_two_ways_that_do_not_fit_is_not_the_same():
    labels = Labels()
    axis = labels.fresh(6)
    assert labels.cut(axis, [2, 3]) is not None
    assert labels.cut(axis, [3, 2]) is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_cutting_an_axis_keeps_its_places_in_their_order(sizes):
    labels = Labels()
    axis = labels.fresh(math.prod(sizes))
    parts = labels.cut(axis, sizes)
    assert parts is not None
    assert [labels.size(labels.resolve(part)) for part in parts] == sizes
    assert labels.resolve(axis) == labels.resolve(tuple(label for part in parts for label in part))


@given(st.lists(st.integers(2, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_the_same_axes_cut_alike_are_the_same(sizes, first):
    labels = Labels()
    one, other = labels.fresh(math.prod(sizes)), labels.fresh(math.prod(sizes))
    cut = labels.cut(one, [math.prod(sizes[:first]), math.prod(sizes[first:])])
    assert labels.unify(one, other)
    assert labels.resolve(one) == labels.resolve(other)
    assert cut is None or sum(map(len, map(labels.resolve, cut))) == len(labels.resolve(other))
