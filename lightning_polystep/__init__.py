"""PolyStep for PyTorch Lightning: train networks without a useful gradient, by forward passes only.

Importing the package registers the strategy, so that ``Trainer(strategy="polystep")`` finds it: the Trainer of
``pytorch_lightning`` as well as that of ``lightning.pytorch``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_polystep import namespaces
from lightning_polystep.__about__ import __version__
from lightning_polystep.engine import Engine
from lightning_polystep.first_weights import initialise
from lightning_polystep.optimizer import PolyStep

if TYPE_CHECKING:
    from lightning_polystep.strategy import PolyStepStrategy

namespaces.register()

__all__ = ["Engine", "PolyStep", "PolyStepStrategy", "__version__", "initialise"]


def __getattr__(name: str) -> Any:
    # Its base class is Lightning's, and which Lightning, an import further down may still decide.
    if name == "PolyStepStrategy":
        return import_module("lightning_polystep.strategy").PolyStepStrategy
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
