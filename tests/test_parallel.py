"""Places in a layout, and shares of the candidates: a partition in equal pieces, even by what the pieces take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.parallel import Axis, Balance, Layout, Work, divide

blocks = st.lists(
    st.builds(Work, st.integers(0, 300), st.integers(1, 70), st.floats(1e-6, 10.0)), min_size=1, max_size=4
)


@given(blocks, st.integers(1, 9))
def test_every_candidate_has_exactly_one_scorer_in_order(work, size):
    shares = [divide(work, Axis(index, size)) for index in range(size)]
    for place, block in enumerate(work):
        assert [c for share in shares for c in share[place]] == list(range(block.candidates))


@given(blocks, st.integers(1, 9))
def test_pieces_are_never_cut(work, size):
    for index in range(size):
        for block, share in zip(work, divide(work, Axis(index, size)), strict=True):
            assert share.start % block.piece == 0 or share.start == block.candidates
            assert share.stop % block.piece == 0 or share.stop == block.candidates


@given(blocks, st.integers(1, 9))
def test_no_process_works_longer_than_its_part_and_a_piece(work, size):
    total, longest = sum(b.pieces * b.seconds for b in work), max(b.seconds for b in work)
    for index in range(size):
        shares = divide(work, Axis(index, size))
        taken = sum(-(-len(share) // b.piece) * b.seconds for b, share in zip(work, shares, strict=True))
        assert taken <= total / size + longest + 1e-9


def test_dear_candidates_count_for_more():
    work = [Work(candidates=10, piece=1, seconds=9.0), Work(candidates=90, piece=1, seconds=1.0)]
    assert divide(work, Axis(0, 2)) == [range(10), range(0)]
    assert divide(work, Axis(1, 2)) == [range(10, 10), range(90)]


@given(blocks, st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_uneven_parts_are_a_partition_too(work, sizes):
    parts = [size / sum(sizes) for size in sizes]
    shares = [divide(work, Axis(index, len(parts)), parts) for index in range(len(parts))]
    for place, block in enumerate(work):
        assert [c for share in shares for c in share[place]] == list(range(block.candidates))


def test_parts_are_as_large_as_asked():
    work = [Work(candidates=60, piece=1), Work(candidates=40, piece=1)]
    parts = [0.1, 0.7, 0.2]
    assert [[len(s) for s in divide(work, Axis(i, 3), parts)] for i in range(3)] == [[10, 0], [50, 20], [0, 20]]


@given(st.lists(st.floats(0.5, 4.0), min_size=2, max_size=6), st.floats(0.0, 2.0))
def test_parts_come_to_take_equally_long(seconds_per_unit, fixed):
    # Every place needs some time before it begins, and works at its own pace.
    balance = Balance(len(seconds_per_unit))

    def seconds():
        return [fixed + 100 * part * pace for part, pace in zip(balance.parts, seconds_per_unit, strict=True)]

    for _ in range(40):
        balance.learn(seconds())
    assert sum(balance.parts) == pytest.approx(1)
    assert max(seconds()) == pytest.approx(min(seconds()), rel=1e-2)


def test_nothing_is_learnt_where_someone_had_nothing_to_do():
    balance = Balance(2)
    balance.learn([1.0, 0.0])
    assert balance.parts == [0.5, 0.5]


@pytest.mark.parametrize(
    ("data", "candidates", "shape"),
    [(1, "auto", (1, 4)), ("auto", 1, (4, 1)), (2, "auto", (2, 2)), ("auto", 2, (2, 2)), (2, 2, (2, 2))],
)
def test_every_rank_has_its_own_place(data, candidates, shape):
    layouts = [Layout.of(rank, 4, data, candidates) for rank in range(4)]
    assert {(layout.data.size, layout.candidates.size) for layout in layouts} == {shape}
    assert [layout.rank for layout in layouts] == [0, 1, 2, 3]
    assert len({(layout.data.index, layout.candidates.index) for layout in layouts}) == 4
    assert [layouts[0].group_of(rank) for rank in range(4)] == [layout.data.index for layout in layouts]


@pytest.mark.parametrize(("data", "candidates"), [(3, "auto"), ("auto", 3), (2, 4), (0, "auto"), (1, 1), (8, "auto")])
def test_sizes_that_do_not_make_the_world_are_refused(data, candidates):
    with pytest.raises(ValueError, match=r"do not make 4 process\(es\)"):
        Layout.of(0, 4, data, candidates)


def test_one_size_must_be_named():
    with pytest.raises(ValueError, match="set the other"):
        Layout.of(0, 4, "auto", "auto")
