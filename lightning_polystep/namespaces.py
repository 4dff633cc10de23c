"""Lightning has two names, ``pytorch_lightning`` and ``lightning.pytorch``: the same code in two packages.

Their classes are not each other's, so that a strategy or a callback serves one of the two. Which one it is in this
process is decided here, once, by whoever asks first; the strategy's names are registered in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PYTORCH_LIGHTNING, UNIFIED = "pytorch_lightning", "lightning.pytorch"

TWO_NAMESPACES = (
    "This Trainer comes from {asking}, but in this process lightning_polystep works with {chosen}: import Trainer, "
    "modules and callbacks from the same package, and above the callbacks and the strategy of lightning_polystep."
)

_TITLE = "Gradient-free training by PolyStep: forward passes only"
# Each name with what its processes do, and the arguments that make them do so.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "polystep": ("processes divide the candidates", {}),
    "polystep_ddp": ("processes divide the batch", {"data_parallel_size": "auto", "candidate_parallel_size": 1}),
    "polystep_spawn": ("processes divide the candidates, and are spawned", {"start_method": "spawn"}),
    "polystep_fork": ("processes divide the candidates, and are forked", {"start_method": "fork"}),
    "polystep_notebook": ("processes divide the candidates, and are forked", {"start_method": "fork"}),
}

_chosen: list[str] = []


def choose(asking: str | None = None) -> str:
    """Return the package that this process uses; the first call decides.

    Args:
        asking: The package whose Trainer asks. Without one, that which was imported first is taken, and where none was,
            ``pytorch_lightning``.

    Returns:
        ``"pytorch_lightning"`` or ``"lightning.pytorch"``.

    Example:
        >>> import lightning_polystep.host
        >>> choose() in (PYTORCH_LIGHTNING, UNIFIED)
        True
    """
    if not _chosen:
        imported = (name for name in sys.modules if name in (PYTORCH_LIGHTNING, UNIFIED))
        _chosen.append(asking or next(imported, PYTORCH_LIGHTNING))
    return _chosen[0]


def strategy_for(asking: str, **options: Any) -> Any:
    """Make the strategy for the Trainer of a package.

    Args:
        asking: The package.
        options: Arguments of ``PolyStepStrategy``.

    Raises:
        ValueError: If this process uses the other package.
    """
    if (chosen := choose(asking)) != asking:
        raise ValueError(TWO_NAMESPACES.format(asking=asking, chosen=chosen))
    return import_module("lightning_polystep.strategy").PolyStepStrategy(**options)


def register_in(registry: Any, make: Callable[..., Any]) -> None:
    """Register all names of the strategy in a ``StrategyRegistry``; safe to call again, as on a reload.

    Args:
        registry: Of Lightning.
        make: Returns the strategy, from its options.
    """
    for name, (description, options) in NAMES.items():
        if name not in registry:
            registry.register(name, make, description=f"{_TITLE}; {description}", **options)


def register() -> None:
    """Make ``Trainer(strategy="polystep")`` known to both packages, each loaded before or after this one, or never."""
    for package in (PYTORCH_LIGHTNING, UNIFIED):
        strategies = f"{package}.strategies"
        then = partial(_register_in_module, partial(strategy_for, package))
        if (loaded := sys.modules.get(strategies)) is not None:
            then(loaded)
        elif not any(isinstance(finder, _AfterImport) and finder.name == strategies for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport(strategies, then))


def _register_in_module(make: Callable[..., Any], strategies: ModuleType) -> None:
    register_in(strategies.StrategyRegistry, make)


class _AfterImport(MetaPathFinder):
    """Waits for a module to be imported, which loads as it would have, and then does something with it.

    Args:
        name: Of the module.
        then: What is done.
    """

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_then(module: ModuleType) -> None:
                execute(module)
                self._then(module)

            vars(loader)["exec_module"] = execute_then
        return spec
