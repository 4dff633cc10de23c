"""Arguments that are of the wrong type or out of range: one sentence with the name, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch

Kind = Literal["number", "whole number", "flag", "name", "mapping"]


class ArgumentTypeError(TypeError, ValueError):
    """An argument is of a type that makes no sense; whoever expects a value out of range catches it as well."""


class ArgumentRangeError(ValueError):
    """An argument is of the right type, and out of range."""


@dataclass(frozen=True)
class Rule:
    """What an argument may be.

    Args:
        name: Of the argument.
        kind: What it is; numbers have to be finite, and True is none.
        text: Says which values are allowed.
        allowed: Tells so; of the finite ones.
        optional: Whether None is allowed.
        others: Names that are allowed as well where a number is expected.
    """

    name: str
    kind: Kind
    text: str
    allowed: Callable[[Any], bool] = lambda _value: True
    optional: bool = False
    others: tuple[str, ...] = ()

    def check(self, owner: str, value: Any) -> None:
        """Refuse a value.

        Args:
            owner: Whose argument it is.
            value: The value.

        Raises:
            ArgumentTypeError: When it is of the wrong type.
            ArgumentRangeError: When it is out of range.
        """
        if (self.optional and value is None) or (isinstance(value, str) and value in self.others):
            return
        told = f"{owner}({self.name}={_shown(value)}): {self.text}"
        if not _OF_KIND[self.kind](value):
            raise ArgumentTypeError(f"{told}; it must be a {self.kind}, and this is of type {type(value).__name__}.")
        if self.kind in {"number", "whole number"} and not math.isfinite(value):
            raise ArgumentRangeError(f"{told}, and finite.")
        if not self.allowed(value):
            raise ArgumentRangeError(f"{told}.")


def check(owner: str, values: Mapping[str, Any], rules: Iterable[Rule]) -> None:
    """Refuse values that break a rule.

    Args:
        owner: Whose arguments they are.
        values: The arguments by name; those that are missing are not looked at.
        rules: The rules.

    Raises:
        ArgumentTypeError: When one is of the wrong type.
        ArgumentRangeError: When one is out of range.

    Example:
        >>> check("Engine", {"max_candidates": -5}, [at_least("max_candidates", 1)])
        Traceback (most recent call last):
        lightning_polystep.values.ArgumentRangeError: Engine(max_candidates=-5): it must be at least 1.
    """
    for rule in rules:
        if rule.name in values:
            rule.check(owner, values[rule.name])


def at_least(name: str, least: int, *, optional: bool = False, others: tuple[str, ...] = ()) -> Rule:
    """Return the rule for a whole number.

    Args:
        name: Of the argument.
        least: The smallest that is allowed.
        optional: Whether None is allowed.
        others: Names that are allowed as well.
    """
    text = f"it must be at least {least}" + "".join(f", or {other!r}" for other in others) + ", or None" * optional
    return Rule(name, "whole number", text, lambda value: value >= least, optional, others)


def one_of(name: str, names: Iterable[str]) -> Rule:
    """Return the rule for a name.

    Args:
        name: Of the argument.
        names: What is allowed.
    """
    names = list(names)
    return Rule(name, "name", f"choose from {', '.join(names)}", lambda value: value in names)


def flag(name: str) -> Rule:
    """Return the rule for a switch.

    Args:
        name: Of the argument.
    """
    return Rule(name, "flag", "choose True or False")


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.dtype != torch.bool and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


_OF_KIND: dict[Kind, Callable[[Any], bool]] = {
    "number": _is_number,
    "whole number": lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    "flag": lambda value: isinstance(value, bool),
    "name": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, Mapping),
}


def _shown(value: Any) -> str:
    """Return a value on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
