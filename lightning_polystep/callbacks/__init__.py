"""Callbacks; none is required."""

from lightning_polystep.callbacks.autograd_off import AutogradOff
from lightning_polystep.callbacks.calibrate import Calibrate
from lightning_polystep.callbacks.initialise import InitialiseByData
from lightning_polystep.callbacks.layer_metrics import LayerMetrics

__all__ = ["AutogradOff", "Calibrate", "InitialiseByData", "LayerMetrics"]
