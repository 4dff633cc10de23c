"""The readout for Triton kernels: one step of LIF neurons, and the loss after the last.

With ``TRITON_INTERPRET=1`` in the environment before the import, Triton runs on the CPU, slowly; so it is tested.
"""

import triton
import triton.language as tl

# Numbers of the resets, as launch arguments; one more with reset_delay.
_MODES = {"none": 0, "zero": 1, "subtract": 3}
LOSSES = {"cross_entropy_count": 0, "cross_entropy_membrane": 1, "mse_rate": 2}


def reset_mode(reset_mechanism: str, reset_delay: bool) -> int:
    """Return the number that stands for a reset: 0 none, 1 zero, 2 zero late, 3 subtract, 4 subtract late."""
    at_once = _MODES[reset_mechanism]
    return at_once + 1 if reset_delay and at_once else at_once


@triton.jit
def load_constants(beta_ptr, fire_at_ptr, level_ptr, neuron, real):
    """Return beta, the least membrane that fires and the threshold of neurons, each a row; padding never fires."""
    beta = tl.load(beta_ptr + neuron, mask=real, other=0.0)[None, :]
    fire_at = tl.load(fire_at_ptr + neuron, mask=real, other=float("inf"))[None, :]
    level = tl.load(level_ptr + neuron, mask=real, other=0.0)[None, :]
    return beta, fire_at, level


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


@triton.jit
def loss_of(spikes, membrane, target, real, steps, classes, LOSS: tl.constexpr):
    """Return the losses of rows of classes from their counts and last membranes; all but ``real`` is padding."""
    if LOSS == 2:
        error = tl.where(real, spikes / steps - target, 0.0)
        loss = tl.sum(error * error, 1) / classes
    else:
        logits = spikes if LOSS == 0 else membrane.to(tl.float64)
        highest = tl.max(tl.where(real, logits, -float("inf")), 1)
        terms = tl.where(real, tl.exp(logits - highest[:, None]), 0.0)
        partition = highest + tl.log(tl.sum(terms, 1))
        loss = tl.sum(target, 1) * partition - tl.sum(target * logits, 1)
    return loss
