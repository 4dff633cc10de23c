"""How strongly places reach others is kept, and known again."""

import torch

from lightning_polystep.scoring.passing import Passing, recalled, remembered
from lightning_polystep.tape import Relation


def passing():
    relation = Relation([[torch.rand(4, 2)]], [4], [2])
    return [Passing([7, 8], torch.rand(3, 2), relation), Passing([9], torch.rand(3, 1), relation)]


def test_what_is_kept_is_known_again():
    memory, known = {}, passing()
    remembered(memory, known)
    found = recalled(memory, [[1, 2], [3]], 3, [4], [[2], [2]])
    assert [each.sinks for each in found] == [[1, 2], [3]]
    for mine, theirs in zip(found, known, strict=True):
        assert torch.equal(mine.strength, theirs.strength)
        assert torch.equal(mine.places.matrices[0][0], theirs.places.matrices[0][0])


def test_products_of_another_kind_are_not_known():
    memory = {}
    assert recalled(memory, [[1, 2], [3]], 3, [4], [[2], [2]]) is None
    remembered(memory, passing())
    assert recalled(memory, [[1, 2], [3]], 4, [4], [[2], [2]]) is None
    assert recalled(memory, [[1, 2], [3]], 3, [5], [[2], [2]]) is None
    assert recalled(memory, [[1, 2, 3]], 3, [4], [[2]]) is None


def test_strengths_are_means_over_what_was_touched():
    hit = [{5: torch.tensor([1.0, 3.0]), 6: torch.tensor([0.0, 0.0])}]
    touched = {(0, place): {5: torch.eye(2)[place], 6: torch.eye(2)[place]} for place in range(2)}
    found = Passing.seen([5, 6], [2], [2], hit, touched)
    assert found.strength.tolist() == [[2.0, 0.0]]
    assert torch.equal(found.places.matrices[0][0], torch.eye(2))
