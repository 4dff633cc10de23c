"""Stateless functions; every layer in :mod:`lightning_polystep.layers` is a thin module around its twin here."""

from lightning_polystep.functional.heaviside import heaviside
from lightning_polystep.functional.lif import LIFOutput, lif
from lightning_polystep.functional.non_differentiable import NonDifferentiableError, non_differentiable
from lightning_polystep.functional.readout import last_membrane, spike_count
from lightning_polystep.functional.sign import sign
from lightning_polystep.functional.staircase import staircase

__all__ = [
    "LIFOutput",
    "NonDifferentiableError",
    "heaviside",
    "last_membrane",
    "lif",
    "non_differentiable",
    "sign",
    "spike_count",
    "staircase",
]
