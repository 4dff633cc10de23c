"""Direct costs on CUDA: a program owns a block of candidates of one class and a share of the samples; no atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.lif_direct_costs.losses import change_by_count, change_by_logit
from lightning_polystep.kernels.readout import Readout, fire_at, readout_scores
from lightning_polystep.kernels.readout.triton import reset_mode, step

_SAMPLES = 64  # per program
_BLOCK = 128  # candidates per program


def lif_direct_costs(shifts: Tensor, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_direct_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    samples, steps, count = shifts.shape
    classes = readout.currents.shape[2]
    by_membrane = readout.loss == "cross_entropy_membrane"
    unused = shifts.new_zeros(1, 1, dtype=torch.float64)
    scores = readout_scores(readout, readout.currents)
    pieces = change_by_logit(readout, scores) if by_membrane else (unused,) * 4
    change = unused if by_membrane else change_by_count(readout, scores)
    parts = triton.cdiv(samples, _SAMPLES)
    costs = shifts.new_zeros((parts, classes, count), dtype=torch.float64)
    _kernel[(classes, triton.cdiv(count, _BLOCK), parts)](
        shifts.contiguous(),
        readout.currents.contiguous(),
        readout.beta.clamp(0, 1).contiguous(),
        fire_at(readout.threshold, readout.spike_on).contiguous(),
        readout.threshold.contiguous(),
        change.contiguous(),
        *(piece.contiguous() for piece in pieces),
        costs,
        samples,
        steps,
        classes,
        count,
        MODE=reset_mode(readout.reset_mechanism, readout.reset_delay),
        BY_MEMBRANE=by_membrane,
        SAMPLES=_SAMPLES,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )
    return costs.sum(0)  # of a fixed number of parts, in a fixed order


@triton.jit
def _kernel(
    shifts_ptr,
    currents_ptr,
    beta_ptr,
    fire_at_ptr,
    level_ptr,
    change_ptr,
    rest_ptr,
    weight_ptr,
    total_ptr,
    base_ptr,
    costs_ptr,
    samples,
    steps,
    classes,
    count,
    MODE: tl.constexpr,
    BY_MEMBRANE: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c, part = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < count
    beta, fire_at, level = tl.load(beta_ptr + c), tl.load(fire_at_ptr + c), tl.load(level_ptr + c)
    cost = tl.zeros([BLOCK], tl.float64)
    for sample in range(part * SAMPLES, tl.minimum(part * SAMPLES + SAMPLES, samples)):
        membrane = tl.zeros([BLOCK], shifts_ptr.dtype.element_ty)
        spikes = tl.zeros([BLOCK], tl.int32)
        for t in range(steps):
            here = sample * steps + t
            current = tl.load(currents_ptr + here * classes + c)
            shift = tl.load(shifts_ptr + here * count + v, mask=inside, other=0.0)
            membrane, spike = step(membrane, current + shift, beta, fire_at, level, MODE)
            spikes += spike.to(tl.int32)
        row = sample * classes + c
        if BY_MEMBRANE:
            logit, rest = membrane.to(tl.float64), tl.load(rest_ptr + row)
            partition = tl.maximum(rest, logit) + tl.log(1.0 + tl.exp(-tl.abs(rest - logit)))
            cost += tl.load(total_ptr + sample) * partition - tl.load(weight_ptr + row) * logit
            cost -= tl.load(base_ptr + row)
        else:
            cost += tl.load(change_ptr + row * (steps + 1) + spikes)
    tl.store(costs_ptr + (part * classes + c) * count + v, cost, mask=inside)
