"""Observe: calls of the step before, which the next step most likely repeats, so that little of them is made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.tape import Operation, Ref


class Call(NamedTuple):
    """A call of an operator that was recorded as one operation with one output.

    Args:
        function: The operator.
        operation: What stands on the tape.
        key: Its part of the tape's structure.
        output: The value that it made.
        shape: Of this value.
        run: Calls the operator.
        is_view: Whether the output shares memory with the first argument.
        values: The arguments that are values, by place.
        others: All other arguments, by place.
    """

    function: Any
    operation: Operation
    key: Any
    output: int
    shape: torch.Size
    run: Callable[..., Any]
    is_view: bool
    values: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, Any], ...]

    @classmethod
    def of(
        cls, function: Any, operation: Operation, key: Any, output: Tensor, run: Callable[..., Any], is_view: bool
    ) -> Call:
        """Return a call that has just been made.

        Args:
            function: The operator.
            operation: What stands on the tape.
            key: Its part of the tape's structure.
            output: What it made.
            run: Calls the operator.
            is_view: Whether the output shares memory with the first argument.
        """
        (made,) = operation.outputs
        assert made is not None
        places = tuple(enumerate(operation.args))
        values = tuple((place, each.index) for place, each in places if type(each) is Ref)
        others = tuple((place, each) for place, each in places if type(each) is not Ref)
        return cls(function, operation, key, made, output.shape, run, is_view, values, others)

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, index_of: dict[int, int]) -> bool:
        """Tell whether arguments are the ones on the tape: the same values, and equal numbers of the same kind.

        Args:
            args: Of the call to come.
            kwargs: Those by name.
            index_of: The value of every tensor, by its identity.

        Example:
            >>> tensor, mul = torch.ones(2), torch.ops.aten.mul.Tensor
            >>> call = Call.of(mul, Operation(mul, (Ref(0), 2), {}, (1,), (0,)), None, tensor, mul, False)
            >>> call.takes((tensor, 2), {}, {id(tensor): 0}), call.takes((tensor, 2.0), {}, {id(tensor): 0})
            (True, False)
        """
        if len(args) != len(self.values) + len(self.others):
            return False
        for place, index in self.values:
            if index_of.get(id(args[place])) != index:
                return False
        for place, its in self.others:
            mine = args[place]
            if not (mine is its or _alike(mine, its)):
                return False
        named = self.operation.kwargs
        return not (kwargs or named) or _alike(kwargs or {}, named)


def _alike(mine: Any, its: Any) -> bool:
    kind = type(mine)
    if kind is not type(its):
        return False
    if kind is list or kind is tuple:
        return len(mine) == len(its) and all(map(_alike, mine, its))
    if kind is dict:
        return mine.keys() == its.keys() and all(_alike(each, its[name]) for name, each in mine.items())
    if isinstance(mine, Tensor):
        return False
    return bool(mine == its) and (mine != 0 or kind is not float or str(mine) == str(its))
