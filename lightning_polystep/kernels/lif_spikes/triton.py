"""Spikes on CUDA: a program runs a block of neurons through all steps."""

import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.readout import fire_at
from lightning_polystep.kernels.readout.triton import reset_mode, step

_BLOCK = 256


def lif_spikes(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    num_steps: int,
    reset_mechanism: str,
    reset_delay: bool,
    spike_on: str,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_spikes`."""
    count = current.shape[1]
    spikes = current.new_empty(num_steps, count)
    _kernel[(triton.cdiv(count, _BLOCK),)](
        current.contiguous(),
        *(value.expand(count).contiguous() for value in (beta.clamp(0, 1), fire_at(threshold, spike_on), threshold)),
        spikes,
        num_steps,
        count,
        0 if len(current) == 1 else count,
        MODE=reset_mode(reset_mechanism, reset_delay),
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )
    return spikes


@triton.jit
def _kernel(
    currents, betas, fires_at, levels, spikes, num_steps, count, stride, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    neuron = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < count
    beta = tl.load(betas + neuron, inside, 0.0)
    fire_at = tl.load(fires_at + neuron, inside, 1.0)
    level = tl.load(levels + neuron, inside, 1.0)
    membrane = tl.zeros_like(beta)
    for t in range(num_steps):
        current = tl.load(currents + t * stride + neuron, inside, 0.0)
        membrane, spike = step(membrane, current, beta, fire_at, level, MODE)
        tl.store(spikes + t * count + neuron, spike.to(beta.dtype), inside)
