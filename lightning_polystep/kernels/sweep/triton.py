"""Outcomes of a number for Triton kernels, and sums over the samples, for each candidate."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_SAMPLES = 64  # per program
_BLOCK = 128  # candidates per program


def look_up(preactivation: Tensor, shifts: Tensor, boundaries: Tensor, table: Tensor) -> Tensor:
    """Sum over the samples what each candidate finds in a table.

    Args:
        preactivation: (N, U), contiguous, as are all.
        shifts: (N, V) or (U, N, V).
        boundaries: (D, P), with D = 1 or U.
        table: (N, U, P + 1), float64.

    Returns:
        (U, V), float64; of a fixed number of parts, in a fixed order.
    """
    (samples, units), count = preactivation.shape, shifts.shape[-1]
    parts = triton.cdiv(samples, _SAMPLES)
    costs = shifts.new_zeros((parts, units, count), dtype=torch.float64)
    if costs.numel():
        _look_up[(units, triton.cdiv(count, _BLOCK), parts)](
            preactivation,
            shifts,
            boundaries,
            table,
            costs,
            samples,
            units,
            count,
            boundaries.shape[1],
            1 if len(boundaries) > 1 else 0,  # from the dictionary of one unit to that of the next
            1 if shifts.ndim == 3 else 0,
            SAMPLES=_SAMPLES,
            BLOCK=_BLOCK,
        )
    return costs.sum(0)


def sum_over_samples(table: Tensor) -> Tensor:
    """Sum a table (U, N, V), contiguous and float64, to (U, V); of a fixed number of parts, in a fixed order.

    How torch splits such a sum may depend on the number of units and candidates.
    """
    units, samples, count = table.shape
    parts = triton.cdiv(samples, _SAMPLES)
    sums = table.new_zeros((parts, units, count))
    if sums.numel():
        grid = (units, triton.cdiv(count, _BLOCK), parts)
        _sum_over_samples[grid](table, sums, samples, units, count, SAMPLES=_SAMPLES, BLOCK=_BLOCK)
    return sums.sum(0)


@triton.jit
def outcome_of(current, boundaries_ptr, most):
    """Count the boundaries at or below each current; a pointer may be one for all, or one for each."""
    below = (current >= float("inf")).to(tl.int32) * 0
    for p in range(most):
        below += (current >= tl.load(boundaries_ptr + p)).to(tl.int32)
    return below


@triton.jit
def _look_up(
    preactivation_ptr,
    shifts_ptr,
    boundaries_ptr,
    table_ptr,
    costs_ptr,
    samples,
    units,
    count,
    most,
    stride,
    shift_stride,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit, part = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < count
    cost = tl.zeros([BLOCK], tl.float64)
    own = (unit * shift_stride).to(tl.int64) * samples
    for n in range(part * SAMPLES, tl.minimum(part * SAMPLES + SAMPLES, samples)):
        current = tl.load(preactivation_ptr + n * units + unit)
        shift = tl.load(shifts_ptr + (own + n) * count + v, mask=inside, other=0.0)
        q = outcome_of(current + shift, boundaries_ptr + unit * stride * most, most)
        cost += tl.load(table_ptr + (n * units + unit) * (most + 1) + q, mask=inside, other=0.0)
    tl.store(costs_ptr + (part * units + unit) * count + v, cost, mask=inside)


@triton.jit
def _sum_over_samples(table_ptr, sums_ptr, samples, units, count, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    unit, part = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < count
    total = tl.zeros([BLOCK], tl.float64)
    first = unit.to(tl.int64) * samples
    for n in range(part * SAMPLES, tl.minimum(part * SAMPLES + SAMPLES, samples)):
        total += tl.load(table_ptr + (first + n) * count + v, mask=inside, other=0.0)
    tl.store(sums_ptr + (part * units + unit) * count + v, total, mask=inside)
