"""Observe: what of the arguments of a call belongs to the structure of a tape, by which steps are told to be alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.tape.tape import Ref, references

_PLAIN = {Ref, int, bool, type(None)}


def structure_of(arguments: Any) -> Any:
    """Return what of arguments belongs to the structure of a tape: all but fractions, which are data."""
    if type(arguments) is tuple and _PLAIN.issuperset(map(type, arguments)):
        return arguments
    if isinstance(arguments, Ref):
        return ("value", arguments.index)
    if isinstance(arguments, float):
        return float
    if isinstance(arguments, tuple | list):
        return tuple([structure_of(argument) for argument in arguments])
    if isinstance(arguments, dict):
        return tuple([(name, structure_of(argument)) for name, argument in arguments.items()])
    return arguments if isinstance(arguments, int | bool | str | None | torch.dtype) else str(arguments)


def values_of(arguments: Any) -> Iterable[int]:
    """Return the values that arguments refer to."""
    if type(arguments) is tuple and not any(isinstance(each, list | dict) for each in arguments):
        return [each.index for each in arguments if type(each) is Ref]
    return references(arguments)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    # A nested tensor has no shape; those of its rows are told by the operations that take them out.
    return (-1,) if tensor.is_nested else tuple(tensor.shape)
