"""Outcomes on CUDA: one kernel tabulates the loss change of every reachable outcome, another looks candidates up.

Programs share no output, so that the sums have one order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.readout import Readout, fire_at, readout_losses, target_weights
from lightning_polystep.kernels.readout.triton import LOSSES, load_constants, loss_of, reset_mode, step
from lightning_polystep.kernels.sweep.triton import look_up, outcome_of

_TABLE_SAMPLES = 16  # samples, times padded classes, that a program of the first kernel runs at once
_TABLE_ENTRIES = 2**25  # at most, 256 MB; more units than fit take turns


def lif_outcome_costs(
    preactivation: Tensor,
    shifts: Tensor,
    boundaries: Tensor,
    trains: Tensor,
    weight: Tensor,
    *readout_arguments: object,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_outcome_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    units, outcomes = preactivation.shape[1], trains.shape[1]
    at_once = max(1, _TABLE_ENTRIES // (len(preactivation) * outcomes))
    own = len(boundaries) == units
    return torch.cat(
        [
            _score(
                preactivation[:, start : start + at_once].contiguous(),
                shifts.contiguous(),
                (boundaries[start : start + at_once] if own else boundaries).contiguous(),
                (trains[start : start + at_once] if own else trains).contiguous(),
                weight[:, start : start + at_once].contiguous(),
                readout,
            )
            for start in range(0, max(1, units), at_once)
        ]
    )


def _score(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, trains: Tensor, weight: Tensor, readout: Readout
) -> Tensor:
    (samples, units), count = preactivation.shape, shifts.shape[1]
    _, steps, classes = readout.currents.shape
    most = boundaries.shape[1]
    table = shifts.new_zeros((samples, units, most + 1), dtype=torch.float64)
    if units == 0 or count == 0:
        return table.new_zeros((units, count))
    stride = 1 if len(boundaries) > 1 else 0  # from the dictionary of one unit to that of the next
    _tabulate[(units, triton.cdiv(samples, _TABLE_SAMPLES))](
        preactivation,
        shifts.amin(1),
        shifts.amax(1),
        boundaries,
        trains,
        weight,
        readout.currents.contiguous(),
        readout.beta.clamp(0, 1).contiguous(),
        fire_at(readout.threshold, readout.spike_on).contiguous(),
        readout.threshold.contiguous(),
        target_weights(readout).contiguous(),
        readout_losses(readout, readout.currents),
        table,
        samples,
        units,
        most,
        steps,
        classes,
        stride,
        MODE=reset_mode(readout.reset_mechanism, readout.reset_delay),
        LOSS=LOSSES[readout.loss],
        LANES=triton.next_power_of_2(classes),
        SAMPLES=_TABLE_SAMPLES,
        enable_fp_fusion=False,
    )
    return look_up(preactivation, shifts, boundaries, table)


@triton.jit
def _tabulate(
    preactivation_ptr,
    lowest_ptr,
    highest_ptr,
    boundaries_ptr,
    trains_ptr,
    weight_ptr,
    currents_ptr,
    beta_ptr,
    fire_at_ptr,
    level_ptr,
    target_ptr,
    loss_ptr,
    table_ptr,
    samples,
    units,
    most,
    steps,
    classes,
    stride,
    MODE: tl.constexpr,
    LOSS: tl.constexpr,
    LANES: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    unit = tl.program_id(0)
    n = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)
    c = tl.arange(0, LANES)
    alive, real = n < samples, c < classes
    both = alive[:, None] & real[None, :]
    beta, fire_at, level = load_constants(beta_ptr, fire_at_ptr, level_ptr, c, real)
    weight = tl.load(weight_ptr + c * units + unit, mask=real, other=0.0)[None, :]
    target = tl.load(target_ptr + n[:, None] * classes + c[None, :], mask=both, other=0.0)
    before = tl.load(loss_ptr + n, mask=alive, other=0.0)
    boundaries, trains = boundaries_ptr + unit * stride * most, trains_ptr + unit * stride * (most + 1) * steps
    current = tl.load(preactivation_ptr + n * units + unit, mask=alive, other=0.0)
    here = outcome_of(current, boundaries, most)
    low = outcome_of(current + tl.load(lowest_ptr + n, mask=alive, other=0.0), boundaries, most)
    high = outcome_of(current + tl.load(highest_ptr + n, mask=alive, other=0.0), boundaries, most)
    for q in range(tl.min(low, 0), tl.max(high, 0) + 1):
        membrane = tl.zeros([SAMPLES, LANES], currents_ptr.dtype.element_ty)
        spikes = tl.zeros([SAMPLES, LANES], tl.float64)
        for t in range(steps):
            old = tl.load(trains + here * steps + t).to(tl.int32)
            change = (tl.load(trains + q * steps + t).to(tl.int32) - old).to(membrane.dtype)
            row = (n[:, None] * steps + t) * classes + c[None, :]
            drive = tl.load(currents_ptr + row, mask=both, other=0.0) + change[:, None] * weight
            membrane, spike = step(membrane, drive, beta, fire_at, level, MODE)
            spikes += spike.to(tl.float64)
        loss = loss_of(spikes, membrane, target, real[None, :], steps, classes, LOSS)
        reached = alive & (q >= low) & (q <= high) & (q != here)
        tl.store(table_ptr + (n * units + unit) * (most + 1) + q, loss - before, mask=reached)
