"""Other optimizers that learn from forward passes alone, hosted as PolyStep is: for comparison, at matched budgets.

They move all parameters at once, as published; :mod:`lightning_polystep.hosted` says what the engine asks of them.
"""

from lightning_polystep.baselines.antithetic import AntitheticOptimizer
from lightning_polystep.baselines.cmaes import CMAES
from lightning_polystep.baselines.eggroll import EGGROLL
from lightning_polystep.baselines.joint import JointOptimizer
from lightning_polystep.baselines.mezo import MeZO
from lightning_polystep.baselines.openai_es import OpenAIES
from lightning_polystep.baselines.spsa import SPSA

__all__ = ["CMAES", "EGGROLL", "SPSA", "AntitheticOptimizer", "JointOptimizer", "MeZO", "OpenAIES"]
