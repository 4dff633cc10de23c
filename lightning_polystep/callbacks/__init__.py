"""Callbacks; none is required."""

from lightning_polystep.callbacks.autograd_off import AutogradOff
from lightning_polystep.callbacks.calibrate import Calibrate
from lightning_polystep.callbacks.initialise import InitialiseByData
from lightning_polystep.callbacks.layer_metrics import LayerMetrics
from lightning_polystep.callbacks.layer_pictures import LayerPictures
from lightning_polystep.callbacks.step_pictures import StepPictures

__all__ = ["AutogradOff", "Calibrate", "InitialiseByData", "LayerMetrics", "LayerPictures", "StepPictures"]
