"""Associative recall: what a sequence means, that sets are disjoint, and that no bag of tokens can know the answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import AssociativeRecall


def drawn(**options):
    sizes = {"num_pairs": 3, "num_keys": 5, "num_values": 4, "train_size": 200, "val_size": 50, "test_size": 60}
    data = AssociativeRecall(**{**sizes, **options})
    data.setup()
    return data


def recall(tokens, num_keys):
    """Look the answer up as a person would."""
    *pairs, query = tokens.tolist()
    return dict(zip(pairs[::2], pairs[1::2], strict=True))[query] - num_keys


def sets(data):
    return data.train_set, data.val_set, data.test_set


@given(pairs=st.integers(1, 4), more_keys=st.integers(2, 4), more_values=st.integers(2, 4), seed=st.integers(0, 2**31))
def test_the_label_is_the_value_behind_the_queried_key(pairs, more_keys, more_values, seed):
    keys, values = pairs + more_keys, pairs + more_values
    data = AssociativeRecall(pairs, keys, values, train_size=5, val_size=2, test_size=2, data_seed=seed)
    data.setup()
    for part in sets(data):
        for tokens, label in zip(part.images, part.labels, strict=True):
            assert tokens.shape == (2 * pairs + 1,)
            assert recall(tokens, keys) == label
            assert len(set(tokens[:-1].tolist())) == 2 * pairs
            assert bool((tokens[:-1:2] < keys).all() and (tokens[1::2] >= keys).all())


def test_no_sequence_is_in_two_sets_or_twice_in_one():
    data = drawn()
    parts = [{tuple(tokens) for tokens in part.images.tolist()} for part in sets(data)]
    assert [len(part) for part in parts] == [200, 50, 60]
    assert len(set.union(*parts)) == 310


def test_all_depends_on_the_seed_alone():
    first = drawn(data_seed=3)
    torch.manual_seed(1)
    again, other = drawn(data_seed=3), drawn(data_seed=4)
    for one, two, three in zip(sets(first), sets(again), sets(other), strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert not torch.equal(one.images, three.images)


def test_every_label_and_every_place_is_asked_for():
    data = drawn(train_size=1000, num_keys=8, num_values=8, num_pairs=4)
    tokens, labels = data.train_set.images, data.train_set.labels
    place = (tokens[:, :-1:2] == tokens[:, -1:]).int().argmax(1)
    assert labels.bincount(minlength=8).min() > 70
    assert place.bincount(minlength=4).min() > 180


def test_a_bag_of_tokens_knows_nothing():
    """Swapping values round keeps all counts and the query, and takes the answer to each value in turn."""
    data = drawn()
    for tokens in data.train_set.images[:20]:
        answers, bags = set(), set()
        for turn in range(3):
            swapped = tokens.clone()
            swapped[1:-1:2] = tokens[1:-1:2].roll(turn)
            answers.add(recall(swapped, 5))
            bags.add((*sorted(swapped[:-1].tolist()), int(swapped[-1])))
        assert len(bags) == 1
        assert len(answers) == 3  # all equally likely, so that one in three is the best that a bag can do


def test_the_default_sequences_are_longer_than_eight():
    assert drawn(num_pairs=5, num_keys=8, num_values=8).train_set.images.shape[1] == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"val_size": 0}, "val_size must be at least 1, got 0"),
        ({"num_keys": 2}, "num_keys must be at least num_pairs, 3, so that none comes twice; got 2"),
        ({"num_values": 2}, "num_values must be at least num_pairs"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        drawn(**options)


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"not found among 2 keys and 2 values \(but 8\): lower train_size"):
        drawn(num_pairs=2, num_keys=2, num_values=2)
