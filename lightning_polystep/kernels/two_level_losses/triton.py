"""Losses on CUDA: a program owns a block of samples of one unit, and counts the starts."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def two_level_losses(lacking: Tensor, other: Tensor, starts: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.two_level_losses`."""
    units, samples = lacking.shape
    found = lacking.new_empty((units, shifts.shape[1], samples))
    if found.numel():
        _kernel[(units, triton.cdiv(samples, _BLOCK))](
            lacking.contiguous(),
            other.contiguous(),
            starts.contiguous(),
            shifts.contiguous(),
            found,
            samples,
            starts.shape[1],
            shifts.shape[1],
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    return found


@triton.jit
def _kernel(lacking_ptr, other_ptr, starts_ptr, shifts_ptr, found_ptr, samples, starts, shifts, BLOCK: tl.constexpr):
    unit = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < samples
    lacks = tl.load(lacking_ptr + unit * samples + sample, mask=inside, other=0.0)
    costs = tl.load(other_ptr + unit * samples + sample, mask=inside, other=0.0)
    for place in range(shifts):
        left = lacks - tl.load(shifts_ptr + unit * shifts + place)
        is_high = tl.zeros([BLOCK], tl.float64)
        for start in range(starts):
            is_high += (tl.load(starts_ptr + unit * starts + start) >= left).to(tl.float64)
        changed = tl.where(lacks <= 0, starts - is_high, is_high)
        tl.store(found_ptr + (unit * shifts + place) * samples + sample, costs * changed, mask=inside)
