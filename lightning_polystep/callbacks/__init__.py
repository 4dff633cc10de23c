"""Callbacks; none is required."""

from lightning_polystep.callbacks.autograd_off import AutogradOff
from lightning_polystep.callbacks.calibrate import Calibrate

__all__ = ["AutogradOff", "Calibrate"]
