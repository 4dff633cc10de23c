"""Observe: how calls of an operator are recorded, found out once, because it is asked at each call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from lightning_polystep.tape.decompositions import HIDDEN_WRITES, ROUNDS, Hidden, decomposition_of
from lightning_polystep.tape.tape import Unknown
from lightning_polystep.tape.writes import Facts, facts_of, tensors_of


class Recipe(NamedTuple):
    """What the recorder asks of an operator at each call.

    Args:
        beside: Whether it computes nothing, as what tells a profiler where a step is.
        decomposition: Simpler operations that say the same.
        rounds: Whether they round in another way.
        writes: Whether it writes in place.
        is_view: Whether what it returns shares memory with its first argument.
        hidden: Returns what a call writes without declaring it.
        run: Calls it.
        facts: All the rest.
        recorded: What stands on the tape: the operator, or that no replay can repeat it.
    """

    beside: bool
    decomposition: Callable[..., Any] | None
    rounds: bool
    writes: bool
    is_view: bool
    hidden: Callable[[tuple[Any, ...]], Hidden | None] | None
    run: Callable[..., Any]
    facts: Facts
    recorded: Any


RECIPES: dict[Any, Recipe] = {}
# Where operators talk to other processes; those of the first write their first argument without declaring it.
_COMMUNICATION = ("c10d", "_c10d_functional")


def _first_written(functional: Any, args: tuple[Any, ...]) -> Hidden:
    return Hidden(tuple(tensors_of(args[0])), functional)


def recipe_of(function: Any) -> Recipe:
    """Return how calls of an operator are recorded, and keep it among those that are known.

    Args:
        function: The operator.
    """
    facts = facts_of(function)
    hidden, run = HIDDEN_WRITES.get(function), function
    if function.namespace != "aten":

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():  # the numbers that a kernel reads do not leave the tape
                return function(*args, **kwargs)

    beside, recorded = function.namespace == "profiler", function
    if function.namespace in _COMMUNICATION:
        recorded = Unknown(f"{function} waits for other processes")
        if function.namespace == _COMMUNICATION[0]:
            hidden = partial(_first_written, recorded)
    recipe = RECIPES[function] = Recipe(
        beside,
        decomposition_of(function),
        function in ROUNDS,
        facts.writes(),
        facts.is_view,
        hidden,
        run,
        facts,
        recorded,
    )
    return recipe
