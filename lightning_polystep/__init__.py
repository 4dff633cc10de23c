"""PolyStep for PyTorch Lightning: train networks without a useful gradient, by forward passes only.

Importing the package registers the strategy, so that ``Trainer(strategy="polystep")`` finds it.
"""

from pytorch_lightning.strategies import StrategyRegistry

from lightning_polystep.__about__ import __version__
from lightning_polystep.batch_size import allow_batch_size_finder
from lightning_polystep.engine import Engine
from lightning_polystep.first_weights import initialise
from lightning_polystep.layout_strategy import NAMES
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.strategy import PolyStepStrategy
from lightning_polystep.trainer_guards import register_refusal

PolyStepStrategy.register_strategies(StrategyRegistry)
register_refusal(NAMES)
allow_batch_size_finder()

__all__ = ["Engine", "PolyStep", "PolyStepStrategy", "__version__", "initialise"]
