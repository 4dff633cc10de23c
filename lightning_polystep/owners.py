"""Whose code and objects are whose: what a snapshot looks into, and what code names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

# Packages whose objects are no state of a training step, or are put back by others.
LEFT_ALONE = frozenset(
    {"torch", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}
    | {__name__.partition(".")[0]}
)
# Modules of those and of Python whose objects do hold state that a step may change.
_HOLD_STATE = (
    *("_thread", "argparse", "collections", "configparser", "multiprocessing.sharedctypes", "queue", "threading"),
    *("types", "weakref", "torch.amp", "torch.distributions", "torch.optim", "torch.quasirandom"),
    "unittest.mock",
)
# Of those, what belongs to the system.
_OF_THE_SYSTEM = ("Thread", "Timer", "lock", "RLock", "_RLock")


def package_of(kind: type) -> str:
    """Return the name of the package that a class comes from.

    Example:
        >>> import torch
        >>> package_of(torch.optim.SGD)
        'torch'
    """
    return kind.__module__.partition(".")[0]


@lru_cache(maxsize=4096)
def is_users_own(package: str) -> bool:
    """Tell whether a package is neither Python's nor installed: its objects are the user's own.

    Args:
        package: Its name.

    Example:
        >>> is_users_own("torch"), is_users_own("random"), is_users_own("my_project")
        (False, False, True)
    """
    if package in LEFT_ALONE or package in sys.stdlib_module_names - {"__main__"}:
        return False
    places = [
        getattr(sys.modules.get(package), "__file__", None) or "",
        *getattr(sys.modules.get(package), "__path__", ()),
    ]
    return not any("site-packages" in place or "dist-packages" in place for place in places)


def is_of_python(package: str) -> bool:
    """Tell whether a package is part of Python itself."""
    return package in sys.stdlib_module_names and package != "__main__"


def is_looked_into(kind: type) -> bool:
    """Tell whether the attributes of a class' objects are state: the user's own, and what libraries keep in Python.

    Of installed libraries, objects that can be called are left alone: they are functions, and what they keep are
    caches, such as compiled code.
    """
    package = package_of(kind)
    if is_users_own(package):
        return True
    if package in LEFT_ALONE or is_of_python(package):
        known = any(kind.__module__ == name or kind.__module__.startswith(f"{name}.") for name in _HOLD_STATE)
        return known and kind.__name__ not in _OF_THE_SYSTEM
    return not any("__call__" in vars(base) for base in kind.__mro__)


def names_in(code: CodeType) -> Iterator[str]:
    """Give all names of globals, attributes and modules in a function's code, and in the code within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def named_by(function: FunctionType) -> dict[str, Any]:
    """Return the globals of a function that its code names, with the user's own modules that it imports itself."""
    table = function.__globals__
    names = dict.fromkeys(names_in(function.__code__))
    found = {name: table[name] for name in names if name in table}
    imported = {name: sys.modules[name] for name in names if name not in table and name in sys.modules}
    return found | {name: module for name, module in imported.items() if is_users_own(name.partition(".")[0])}


def parts_named(module: ModuleType, function: FunctionType) -> dict[str, Any]:
    """Return what a module of the user's own holds under names that some code has."""
    table = vars(module)
    return {name: table[name] for name in dict.fromkeys(names_in(function.__code__)) if name in table}


def may_be_written(value: Any) -> bool:
    """Tell whether a variable is followed: all but functions that are not the user's own."""
    return not isinstance(value, FunctionType) or is_users_own((value.__module__ or "").partition(".")[0])


def methods_called(kind: type, first: Any) -> list[FunctionType]:
    """Return a method of a class, with those that it calls by name, and so on, as far as they are the user's own."""
    called, waiting = list[FunctionType](), [first]
    while waiting:
        method = getattr(waiting[-1], "__wrapped__", waiting.pop())  # what a cache or another decorator hides
        if isinstance(method, FunctionType) and method not in called:
            called.append(method)
            found = (getattr(kind, name, None) for name in names_in(method.__code__))
            waiting += [each for each in found if callable(each) and may_be_written(each)]
    return called


def is_data(name: str, value: Any) -> bool:
    """Tell whether an entry of a class is no method, no property and nothing that Python has put there."""
    return not (name.startswith("__") or name.startswith("_abc") or callable(value) or hasattr(type(value), "__get__"))


def is_descriptor(value: Any) -> bool:
    """Tell whether an entry of a class is an object of the user's own that stands for an attribute."""
    return hasattr(type(value), "__get__") and is_users_own(package_of(type(value)))


def slots_of(kind: type) -> list[str]:
    """Return the names of a class' own slots."""
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def is_trainer(kind: type) -> bool:
    """Tell whether a class is Lightning's Trainer, of which most is no state of a step."""
    return any(base.__name__ == "Trainer" and package_of(base) in LEFT_ALONE for base in kind.__mro__)


def _data_of(trainer: Any) -> list[Any]:
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    return [each.dataset for each in loaders if hasattr(each, "dataset")]


# What code that names one of these may reach by a Trainer, though it is no attribute of it.
PARTS_OF_TRAINER: dict[str, Callable[[Any], list[Any]]] = {
    "callback": lambda trainer: list(trainer.callbacks),
    "datamodule": lambda trainer: [trainer.datamodule],
    "dataloader": _data_of,
}
