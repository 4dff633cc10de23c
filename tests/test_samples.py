from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.samples import samples_in


class NotToBeWalkedThrough(np.ndarray):
    def __iter__(self):
        raise AssertionError("an array is no container")


@dataclass
class Graph:
    name: str
    nodes: np.ndarray
    edges: torch.Tensor


@given(length=st.integers(0, 5), wraps=st.lists(st.sampled_from(["list", "tuple", "dict", "graph"]), max_size=4))
def test_first_length_is_found_however_deep(length, wraps):
    batch = np.zeros((length, 2)).view(NotToBeWalkedThrough)
    for wrap in wraps:
        batch = {
            "list": [batch, torch.zeros(9)],
            "tuple": (None, batch),
            "dict": {"name": "x", "values": batch, "other": torch.zeros(7)},
            "graph": Graph("g", batch, torch.zeros(8)),
        }[wrap]
    assert samples_in(batch) == length


def test_scalar_is_one_and_nothing_is_none():
    assert samples_in(torch.tensor(3.0)) == samples_in(np.array(2)) == 1
    assert samples_in([]) == samples_in("words") == samples_in({"a": 3, "b": [None, b"x"]}) == samples_in(Graph) == 0


def test_iterator_is_not_used_up():
    batches = iter([torch.zeros(3)])
    assert samples_in(batches) == 0
    assert len(next(batches)) == 3
