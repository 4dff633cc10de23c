"""Values laid out by sample, unit and places, and which places reach which."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.tape import Layout, Relation
from tests.helpers.tapes import blocks_of, record

NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5)), (7, 4), []),
    "tokens": (lambda: nn.Sequential(nn.Linear(4, 5)), (7, 3, 4), [3]),
    "image": (lambda: nn.Sequential(nn.Conv2d(2, 5, 2)), (7, 2, 5, 4), [4, 3]),
}


@pytest.mark.parametrize("kind", sorted(NETS))
def test_a_value_is_laid_out_and_put_back(kind):
    make, shape, places = NETS[kind]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    recording, _, _ = record(net, lambda: net(x).square().flatten(1).sum(1).mean())
    tape = recording.taken()
    entries, _ = recording.entries(blocks_of(net)[0])
    made = entries.products[0].made
    value = tape.values[made].tensor
    layout = Layout.of(entries.behind, made, value.shape)
    assert layout.places == places
    assert layout.laid_out == (7, 5, *places)
    apart = layout.apart(torch.stack([value, 2 * value]))
    expected = net(x).detach()
    expected = expected if kind == "image" else expected.movedim(-1, 1)
    assert torch.equal(apart, torch.stack([expected, 2 * expected]))
    assert torch.equal(layout.back(apart), torch.stack([value, 2 * value]))


def test_what_holds_no_samples_has_no_layout():
    net, x = nn.Sequential(nn.Linear(4, 5)), torch.randn(7, 4)
    recording, _, _ = record(net, lambda: net(x).square().flatten(1).sum(1).mean())
    entries, _ = recording.entries(blocks_of(net)[0])
    weight = entries.products[0].weight
    assert Layout.of(entries.behind, weight, recording.taken().values[weight].tensor.shape) is None


def pooled(sizes, later):
    """Return which later places each place reaches where windows of places become one."""
    touched = {}
    for axis, size in enumerate(sizes):
        for place in range(size):
            hit = torch.zeros(later)
            hit.select(axis, place * later[axis] // size)[...] = 1
            touched[axis, place] = hit
    return touched


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(2, 3)), min_size=1, max_size=2), st.integers(0, 99))
def test_sums_over_related_places_are_those_of_windows(axes, seed):
    later, sizes = [count for count, _ in axes], [count * window for count, window in axes]
    relation = Relation.seen(sizes, later, pooled(sizes, later))
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, *sizes, generator=draw).double(), torch.randn(2, *later, generator=draw).double()
    windows, spread = torch.zeros(2, *later).double(), torch.zeros(2, *sizes).double()
    for place in itertools.product(*map(range, sizes)):
        to = tuple(at * count // size for at, count, size in zip(place, later, sizes, strict=True))
        windows[(slice(None), *to)] += first[(slice(None), *place)]
        spread[(slice(None), *place)] = second[(slice(None), *to)]
    torch.testing.assert_close(relation.to_later(first), windows)
    torch.testing.assert_close(relation.to_first(second), spread)


def test_places_that_all_meet_in_one_number_and_a_number_that_reaches_all():
    meet = Relation.seen([3], [], {(0, place): torch.tensor(1.0) for place in range(3)})
    assert meet.to_later(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [7.0]
    assert meet.to_first(torch.tensor([7.0])).tolist() == [[7.0, 7.0, 7.0]]
    spread = Relation.seen([], [3], {})
    assert spread.to_later(torch.tensor([2.0])).tolist() == [[2.0, 2.0, 2.0]]
    assert spread.to_first(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [7.0]


@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_places_that_reach_their_likes_only_are_weighed_one_by_one(sizes, causal, seed):
    """As what neurons make of an image over time: the first axis also reaches later places."""
    draw = torch.Generator().manual_seed(seed)
    strengths = [torch.rand(size, generator=draw).double().add(0.5).diag() for size in sizes]
    if causal:
        strengths[0] = torch.rand(sizes[0], sizes[0], generator=draw).double().add(0.5).triu()
    even = [[torch.ones(one, other).double() for other in sizes] for one in sizes]
    for at, own in enumerate(strengths):
        even[at][at] = own
    relation, given_ = Relation(even, sizes, sizes), torch.randn(2, *sizes, generator=draw).double()
    letters, others = "abc"[: len(sizes)], "ijk"[: len(sizes)]
    terms = ",".join(one + other for one, other in zip(letters, others, strict=True))
    later = torch.einsum(f"z{letters},{terms}->z{others}", given_, *strengths)
    torch.testing.assert_close(relation.to_later(given_), later)
    back = torch.einsum(f"z{others},{terms}->z{letters}", given_, *strengths)
    torch.testing.assert_close(relation.to_first(given_), back)


def test_steps_of_time_that_become_axes_of_nothing_are_summed_and_shared_out():
    """As those of a current over time whose neurons are looked at step by step: (T, H) reaches (H,)."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    relation = Relation([[torch.ones(3, 2)], [rows]], [3, 2], [2])
    first = torch.arange(6.0).reshape(3, 2)
    assert relation.to_later(first).tolist() == [6.0, 18.0]
    assert relation.to_first(torch.tensor([1.0, 3.0])).tolist() == [[1.0, 6.0]] * 3


def seen_of(reached):
    """Return what the relation is where columns of a later value are reached by rows as told, and by columns alike."""
    touched = {(0, row): reached[row][None].expand(*reached.shape) for row in range(len(reached))}
    touched |= {(1, column): torch.ones_like(reached) for column in range(reached.shape[1])}
    return Relation.seen(list(reached.shape), list(reached.shape), touched).matrices


def test_a_few_places_that_seem_not_to_be_reached_are_chance():
    """As corners of images in which nothing ever fires; a row that never tells anything says nothing either."""
    draw = torch.Generator().manual_seed(0)
    reached = torch.rand(12, 12, generator=draw) + 0.1
    reached[0, 0] = reached[11, 11] = 0
    assert bool((seen_of(reached)[0][1] == 1).all())
    reached[5] = 0
    assert bool((seen_of(reached)[0][1] == 1).all())
    torch.testing.assert_close(seen_of(reached.tril())[0][1], reached.tril())
