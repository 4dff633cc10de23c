"""Stateless functions; every layer in :mod:`lightning_polystep.layers` is a thin module around its twin here."""

from lightning_polystep.functional.heaviside import NonDifferentiableError, heaviside
from lightning_polystep.functional.lif import LIFOutput, lif
from lightning_polystep.functional.readout import last_membrane, spike_count, spike_rate

__all__ = ["LIFOutput", "NonDifferentiableError", "heaviside", "last_membrane", "lif", "spike_count", "spike_rate"]
