"""Callbacks; none is required."""

from lightning_polystep.callbacks.autograd_off import AutogradOff

__all__ = ["AutogradOff"]
