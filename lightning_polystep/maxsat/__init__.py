"""Maximum satisfiability: formulas, their files, and an objective whose particles are the variables."""

from lightning_polystep.maxsat.files import FormulaError, read_formula, write_formula
from lightning_polystep.maxsat.formula import WeightedCNF
from lightning_polystep.maxsat.objective import UnsatisfiedWeight
from lightning_polystep.maxsat.random_formulas import random_ksat

__all__ = ["FormulaError", "UnsatisfiedWeight", "WeightedCNF", "random_ksat", "read_formula", "write_formula"]
