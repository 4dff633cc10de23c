"""Which tensors share memory, and what it holds, is known through views of views."""

import torch

from lightning_polystep.tape.memory import Memory, View
from lightning_polystep.tape.tape import Value


def viewed():
    memory, whole = Memory(), torch.zeros(4, 3)
    part = whole[1:]
    corner = part[:, :2]
    memory.read(whole, 0)
    memory.cut(part, 1, View(whole, 0, 0))
    memory.cut(corner, 2, View(part, 1, 0))
    return memory, whole, part, corner


def test_views_of_views_have_one_root():
    memory, whole, part, corner = viewed()
    assert memory.root(corner) is memory.root(part) is memory.root(whole) is whole
    assert memory.view(whole) is None


def test_a_write_makes_all_that_share_the_memory_stale():
    memory, whole, part, corner = viewed()
    memory.written(corner)
    assert all(map(memory.is_stale, (whole, part, corner)))
    memory.read(corner, 3)
    assert not memory.is_stale(corner)
    assert memory.is_stale(part)


def test_values_keep_what_they_were_before_a_write():
    memory, whole, part, corner = viewed()
    values = [Value(whole), Value(part), Value(corner)]
    memory.preserve(part, values)
    whole.fill_(7)
    assert all(bool((value.tensor == 0).all()) for value in values)


def test_tensors_from_outside_that_share_places_are_neighbours():
    memory, whole = Memory(), torch.zeros(6)
    assert memory.neighbour(whole[:3]) is None
    assert memory.neighbour(whole[3:]) is None, "parts of one memory that do not meet"
    assert memory.neighbour(torch.zeros(6)) is None
    assert memory.neighbour(whole[2:4]) is not None


def test_what_stands_in_for_a_tensor_is_the_parent_of_its_views():
    memory, whole, part, _ = viewed()
    other = whole.view_as(whole)
    memory.stand_in(other, whole)
    assert memory.root(part) is other
