"""The layers behind on CUDA: rows, each a change of one unit on one sample, go through one layer after the other.

A program owns a tile of rows and units and adds what arrives in the order of the units that send it, so that its sums
round as those of the other implementations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.feedforward.reference import Behind, Scores, is_relu, losses
from lightning_polystep.kernels.sweep.triton import outcome_of

_ROWS, _UNITS = 32, 32  # of a program
_ENTRIES = 2**24  # of one layer at most; more rows than fit take turns
NONE, RELU, STEPS = range(3)


def loss_changes(behind: Behind, head: Scores, sample: Tensor, unit: Tensor, change: Tensor) -> Tensor:
    """Return by how much changes of units change the loss of their samples, (R,), float64.

    Args:
        behind: The layers behind.
        head: The scores and the loss.
        sample: n of each change, (R,), int64.
        unit: u of each change, (R,), int64.
        change: Of the unit's value, (R,).
    """
    widest = max(len(weight) for weight in behind.weights)
    at_once = max(1, _ENTRIES // widest)
    before = losses(head, head.scores)
    parts = [
        losses(head._replace(target=head.target[n]), _propagate(behind, head, n, u, delta)) - before[n]
        for n, u, delta in zip(sample.split(at_once), unit.split(at_once), change.split(at_once), strict=True)
    ]
    return torch.cat(parts)


def _propagate(behind: Behind, head: Scores, sample: Tensor, unit: Tensor, change: Tensor) -> Tensor:
    """Return the scores of each row, (R, C)."""
    arriving, column = change[:, None].contiguous(), unit
    for h, boundaries, levels, weight in zip(*behind[:3], behind.weights[:-1], strict=True):
        kind = RELU if is_relu(levels) else STEPS
        arriving = _layer(h, arriving, column, sample, weight, boundaries, levels, kind)
        column = torch.zeros_like(unit)
    return _layer(head.scores, arriving, column, sample, behind.weights[-1], change, change, NONE)


def _layer(
    h: Tensor,
    arriving: Tensor,
    column: Tensor,
    sample: Tensor,
    weight: Tensor,
    boundaries: Tensor,
    levels: Tensor,
    kind: int,
) -> Tensor:
    (rows, senders), units = arriving.shape, len(weight)
    out = arriving.new_empty(rows, units)
    if out.numel():
        _kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(units, _UNITS))](
            h.contiguous(),
            arriving,
            column,
            sample,
            weight.T.contiguous(),
            boundaries.contiguous(),
            levels.contiguous(),
            out,
            rows,
            senders,
            units,
            boundaries.shape[-1],
            1 if len(levels) > 1 else 0,
            KIND=kind,
            ROWS=_ROWS,
            UNITS=_UNITS,
            enable_fp_fusion=False,
        )
    return out


@triton.jit
def _send(x, unit, boundaries_ptr, levels_ptr, most, stride, inside, KIND: tl.constexpr):
    value = tl.where(x > 0, x, 0.0)
    if KIND == 2:
        q = outcome_of(x, boundaries_ptr + unit * stride * most, most)
        value = tl.load(levels_ptr + unit * stride * (most + 1) + q, mask=inside, other=0.0)
    return value


@triton.jit
def _kernel(
    h_ptr,
    arriving_ptr,
    column_ptr,
    sample_ptr,
    weight_ptr,
    boundaries_ptr,
    levels_ptr,
    out_ptr,
    rows,
    senders,
    units,
    most,
    stride,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    alive = row < rows
    inside = alive[:, None] & (unit < units)[None, :]
    sample = tl.load(sample_ptr + row, mask=alive, other=0)
    column = tl.load(column_ptr + row, mask=alive, other=0)
    before = tl.load(h_ptr + sample[:, None] * units + unit[None, :], mask=inside, other=0.0)
    x = before
    for j in range(senders):
        change = tl.load(arriving_ptr + row * senders + j, mask=alive, other=0.0)
        weight = tl.load(weight_ptr + (column + j)[:, None] * units + unit[None, :], mask=inside, other=0.0)
        x += change[:, None] * weight
    if KIND > 0:
        # Padding looks into the table of unit 0.
        own = tl.where(unit < units, unit, 0)[None, :]
        x = _send(x, own, boundaries_ptr, levels_ptr, most, stride, inside, KIND)
        x -= _send(before, own, boundaries_ptr, levels_ptr, most, stride, inside, KIND)
    tl.store(out_ptr + row[:, None] * units + unit[None, :], x, mask=inside)
