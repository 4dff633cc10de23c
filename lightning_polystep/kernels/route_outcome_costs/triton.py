"""Choices on CUDA: a program owns a block of candidates of one unit and a share of the samples; no atomics."""

import triton
import triton.language as tl
from torch import Tensor

_SAMPLES = 64  # per program
_BLOCK = 128  # candidates per program


def route_outcome_costs(logits: Tensor, changes: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.route_outcome_costs`."""
    (samples, outcomes), (units, count) = logits.shape, (weight.shape[1], changes.shape[-1])
    parts = triton.cdiv(samples, _SAMPLES)
    costs = losses.new_zeros((parts, units, count))
    if costs.numel():
        _kernel[(units, triton.cdiv(count, _BLOCK), parts)](
            logits.contiguous(),
            changes.contiguous(),
            weight.contiguous(),
            losses.contiguous(),
            losses.gather(1, logits.argmax(1, keepdim=True)),
            costs,
            samples,
            outcomes,
            units,
            count,
            1 if changes.ndim == 3 else 0,  # from the changes of one unit to those of the next
            SAMPLES=_SAMPLES,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    return costs.sum(0)  # of a fixed number of parts, in a fixed order


@triton.jit
def _kernel(
    logits_ptr,
    changes_ptr,
    weight_ptr,
    losses_ptr,
    before_ptr,
    costs_ptr,
    samples,
    outcomes,
    units,
    count,
    stride,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit, part = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < count
    cost = tl.zeros([BLOCK], tl.float64)
    own = (unit * stride).to(tl.int64) * samples
    for sample in range(part * SAMPLES, tl.minimum(part * SAMPLES + SAMPLES, samples)):
        change = tl.load(changes_ptr + (own + sample) * count + v, mask=inside, other=0.0)
        row = sample * outcomes
        # The first of the best outcomes so far, and its logit.
        choice, best = v * 0, tl.load(logits_ptr + row) + change * tl.load(weight_ptr + unit)
        for outcome in range(1, outcomes):
            logit = tl.load(logits_ptr + row + outcome) + change * tl.load(weight_ptr + outcome * units + unit)
            choice, best = tl.where(logit > best, outcome, choice), tl.where(logit > best, logit, best)
        cost += tl.load(losses_ptr + row + choice) - tl.load(before_ptr + sample)
    tl.store(costs_ptr + (part * units + unit) * count + v, cost, mask=inside)
