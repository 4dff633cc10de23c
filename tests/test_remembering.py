"""Single things that hold state are put back to where they were."""

import ctypes
import io
import os
import random
from contextvars import ContextVar, copy_context

import numpy as np
import pytest
import torch

from lightning_polystep import remembering


def drawn(generator):
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    if isinstance(generator, np.random.SeedSequence):
        return generator.spawn(1)[0].spawn_key
    if isinstance(generator, np.random.BitGenerator):
        return int(generator.random_raw())
    return float(generator.random())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.Generator().manual_seed(3),
        lambda: random.Random(3),
        lambda: np.random.default_rng(3),
        lambda: np.random.RandomState(3),
        lambda: np.random.PCG64(3),
        lambda: np.random.SeedSequence(3),
    ],
)
def test_a_generator_draws_again_what_it_drew(make):
    generator = make()
    assert isinstance(generator, remembering.GENERATORS)
    put_back = remembering.remember_generator(generator)
    first, second = drawn(generator), drawn(generator)
    assert first != second
    put_back()
    assert drawn(generator) == first


def test_children_that_a_generator_spawned_are_forgotten():
    generator = np.random.default_rng(3)
    put_back = remembering.remember_generator(generator)
    first = generator.spawn(1)[0].random()
    assert generator.spawn(1)[0].random() != first
    put_back()
    assert generator.spawn(1)[0].random() == first


def test_numbers_of_c_and_files_in_memory():
    number, array, file = ctypes.c_int(4), (ctypes.c_double * 2)(1.0, 2.0), io.StringIO("before")
    file.seek(3)
    undo = [
        remembering.remember_numbers(number),
        remembering.remember_numbers(array),
        remembering.remember_memory(file),
    ]
    number.value, array[1] = 5, 7.0
    file.write("after")
    for put_back in undo:
        put_back()
    assert (number.value, list(array), file.getvalue(), file.tell()) == (4, [1.0, 2.0], "before", 3)


def test_a_context_variable():
    variable = ContextVar("variable")

    def run():
        variable.set("before")
        put_back = remembering.remember_variable(variable)
        variable.set("after")
        put_back()
        return variable.get()

    assert copy_context().run(run) == "before"


def test_the_environment(monkeypatch):
    monkeypatch.setenv("REMEMBERED", "before")
    monkeypatch.setattr(os, "environ", os.environ)
    before = dict(os.environ)
    os.environ["REMEMBERED"], os.environ["ADDED"] = "after", "1"
    remembering.restore_environment(before)
    assert dict(os.environ) == before


def test_containers_are_compared_by_the_very_objects():
    one, same = [1.5], [1.5]
    assert remembering.holds_the_same([one, 2], [one, 2])
    assert not remembering.holds_the_same([one], [same])
    assert not remembering.holds_the_same({"a": one, "b": 2}, {"b": 2, "a": one})
    assert remembering.holds_the_same({1, 2}, {2, 1})
    assert not remembering.holds_the_same([one, one], [one])


def test_variables_of_a_table():
    kept, table = object(), {"a": 1}
    table["b"] = kept
    before = dict(table)
    table["b"] = object()
    remembering.assign(table, before)
    assert table["b"] is kept
