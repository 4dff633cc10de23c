"""What puts back single things that hold state: generators of random numbers, numbers of C, memory, variables."""

from __future__ import annotations

import ctypes
import io
import os
import random
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch

PutBack = Callable[[], None]

# Numbers of C, such as processes share.
C_VALUES: tuple[type, ...] = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure)

GENERATORS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    np.random.SeedSequence,
)


def remember_generator(generator: Any) -> PutBack:
    """Return what puts a generator back where it is.

    Raises:
        NotImplementedError: From one without a state, as that of the system.
    """
    if isinstance(generator, np.random.SeedSequence):
        return _remember_seeds(generator)
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: drop(generator.set_state(state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    bits: Any = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    place, seeds = bits.state, _remember_seeds(bits.seed_seq)

    def put_back() -> None:
        bits.state = place
        seeds()

    return put_back


def _remember_seeds(seeds: Any) -> PutBack:
    """Remember how many children a sequence of seeds has, which ``spawn`` counts."""
    if not isinstance(seeds, np.random.SeedSequence):
        return lambda: None
    sequence: Any = seeds
    children, state = seeds.n_children_spawned, sequence.__reduce__()[2]

    def put_back() -> None:
        if seeds.n_children_spawned != children:
            sequence.__setstate__(state)

    return put_back


def restore_environment(before: dict[str, str]) -> None:
    """Make the environment of this process what it was.

    Args:
        before: All of its variables.
    """
    if dict(os.environ) != before:
        for name in [name for name in os.environ if name not in before]:
            del os.environ[name]
        os.environ.update(before)


def remember_numbers(value: Any) -> PutBack:
    """Return what puts a number, array or structure of C back."""
    before, place = bytes(value), ctypes.addressof(value)

    def put_back() -> None:
        if bytes(value) != before:  # what has not changed may be memory that only can be read
            ctypes.memmove(place, before, len(before))

    return put_back


def remember_memory(file: io.StringIO | io.BytesIO) -> PutBack:
    """Return what puts a file in memory back, with its position."""
    stream: Any = file
    before = stream.__getstate__()

    def put_back() -> None:
        if stream.__getstate__() != before:
            stream.__setstate__(before)

    return put_back


def remember_variable(variable: ContextVar[Any]) -> PutBack:
    """Return what puts a context variable back, which must have a value."""
    before = variable.get()

    def put_back() -> None:
        if variable.get() is not before:
            variable.set(before)

    return put_back


def drop(_result: Any) -> None:
    """Return nothing."""


def holds_the_same(box: Any, before: Any) -> bool:
    """Tell whether a container holds the very objects, in their order, that a copy of it holds."""
    if len(box) != len(before):
        return False
    if isinstance(box, bytearray | set):
        return bool(box == before)
    if isinstance(box, dict):
        return all(a is b and c is d for (a, c), (b, d) in zip(dict.items(box), before.items(), strict=True))
    return all(a is b for a, b in zip(box, before, strict=True))


def assign(table: dict[str, Any], before: dict[str, Any]) -> None:
    """Put variables back to the objects that they were."""
    for name, value in before.items():
        if name not in table or table[name] is not value:
            table[name] = value
