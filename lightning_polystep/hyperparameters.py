"""Hyper-parameters that are objects, transports and schedules, as what a checkpoint may hold: names and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_polystep.schedules import SCHEDULES, Schedule
from lightning_polystep.transport import TRANSPORTS, Transport

# Entries of a parameter group that may be such objects, each with the kinds that are known by name.
_KINDS: dict[str, Mapping[str, type[Any]]] = {
    "transport": {name: type(transport) for name, transport in TRANSPORTS.items()},
    "epsilon": SCHEDULES,
}


def described(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group whose transports and schedules are dicts of their name and their settings.

    Args:
        group: As the optimizer holds it.

    Example:
        >>> from lightning_polystep.schedules import Linear
        >>> described({"lr": 0.1, "epsilon": Linear(2.0, 1.0, steps=10), "transport": "softmax"})
        {'lr': 0.1, 'epsilon': {'name': 'linear', 'start': 2.0, 'end': 1.0, 'steps': 10}, 'transport': 'softmax'}
    """
    return {key: _describe(value) if isinstance(value, Transport | Schedule) else value for key, value in group.items()}


def _describe(value: Any) -> dict[str, Any]:
    return {"name": value.name, **{field.name: getattr(value, field.name) for field in fields(value)}}


def restored(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameter group that :func:`described` was given.

    Nothing is imported and nothing is run by name: kinds that this package does not know are taken from the group that
    the optimizer has now.

    Args:
        saved: What it returned.
        current: The group of the optimizer that loads it, whose own transport or schedule may be of a kind that only
            the user has.

    Raises:
        ValueError: When a kind is not known, or does not take what was saved.
    """
    group = dict(saved)
    for key, kinds in _KINDS.items():
        if isinstance(saved.get(key), Mapping):
            group[key] = _restore(key, dict(saved[key]), kinds, current.get(key))
    return group


def _restore(key: str, settings: dict[str, Any], kinds: Mapping[str, type[Any]], current: Any) -> Any:
    name = settings.pop("name", None)
    own = isinstance(current, Transport | Schedule) and current.name == name
    kind = type(current) if own else kinds.get(str(name))
    if kind is None:
        raise ValueError(
            f"The checkpoint's {key} is {name!r}, which is none of {', '.join(kinds)}: give PolyStep the {key} that "
            "the run was started with."
        )
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(
            f"The checkpoint's {key} {name!r} has settings that {kind.__name__} does not take: {settings}."
        ) from error
