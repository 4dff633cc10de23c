"""Whose objects are looked into, and what code names."""

import math
import queue
import threading

import numba
import pytest
import torch
from sklearn.linear_model import SGDClassifier
from torch import nn

from lightning_polystep import owners


class Own:
    pass


@pytest.mark.parametrize(
    ("kind", "looked_into"),
    [
        (Own, True),
        (SGDClassifier, True),
        (queue.Queue, True),
        (torch.distributions.Normal, True),
        (torch.optim.Adam, True),
        (type(numba.njit(lambda x: x)), False),  # what it keeps is compiled code
        (threading.Thread, False),
        (torch.utils.data.DataLoader, False),
        (nn.Linear, False),  # by its own tables
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whose_objects_are_looked_into(kind, looked_into):
    assert owners.is_looked_into(kind) == looked_into


def test_names_of_code_and_of_the_code_within():
    def outer():
        return [math.sqrt(each) for each in [lambda: Own.number]]

    assert {"math", "sqrt", "Own", "number"} <= set(owners.names_in(outer.__code__))
    assert owners.named_by(outer)["math"] is math
