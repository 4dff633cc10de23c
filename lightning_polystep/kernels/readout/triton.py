"""The readout for Triton kernels: one step of LIF neurons.

With ``TRITON_INTERPRET=1`` in the environment before the import, Triton runs on the CPU, slowly; so it is tested.
"""

import math

import torch
import triton
import triton.language as tl

from lightning_polystep.kernels.readout.reference import Readout

# Numbers of the resets, as launch arguments; LATE is added with reset_delay.
MODES = {"none": 0, "zero": 1, "subtract": 3}


def reset_mode(readout: Readout) -> int:
    """Return the number that stands for the readout's reset: 0 none, 1 zero, 2 zero late, 3 subtract, 4 late."""
    at_once = MODES[readout.reset_mechanism]
    return at_once + 1 if readout.reset_delay and at_once else at_once


def fire_at(readout: Readout) -> torch.Tensor:
    """Return the least membrane that fires, so that >= serves ``"gt"`` as well."""
    if readout.spike_on == "ge":
        return readout.threshold
    return torch.nextafter(readout.threshold, torch.full_like(readout.threshold, math.inf))


@triton.jit
def step(membrane, current, beta, fire_at, level, MODE: tl.constexpr):
    """Advance neurons as ``functional.lif`` does; launch with ``enable_fp_fusion=False`` for the same rounding."""
    owed = tl.where(membrane >= fire_at, level, 0.0)
    if MODE == 2:
        membrane = tl.where(membrane >= fire_at, 0.0, membrane)
    value = beta * membrane + current
    if MODE >= 3:
        value = value - owed
    spike = value >= fire_at
    if MODE == 1:
        value = tl.where(spike, 0.0, value)
    if MODE == 3:
        value = value - (tl.where(spike, level, 0.0) - owed)
    return value, spike
