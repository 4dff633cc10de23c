"""Candidates on CUDA: all trains of a unit, then one row for each different train of a sample through the network.

Kernels simulate the candidates' neuron, find equal trains, and run rows through a hidden layer and through the readout.
They add what changed spikes feed a layer neuron by neuron, so that currents round as those of the other
implementations. Programs share no output.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.lif_train_costs.reference import Hidden
from lightning_polystep.kernels.readout import Readout, fire_at, target_weights
from lightning_polystep.kernels.readout.triton import LOSSES, load_constants, loss_of, reset_mode, step
from lightning_polystep.kernels.sweep.triton import sum_over_samples

_SAMPLES, _BLOCK = 16, 128  # samples and candidates per program
_ROWS, _NEURONS = 16, 32  # of a layer, per program
_LANES = 512  # rows times padded classes of the readout, per program
_MOST_CLASSES = 4096  # of which a program holds one row
_WORDS = 2**22  # of trains at once; more units than fit take turns
_SPIKES = 2**24  # of one layer at once; more rows than fit take turns


class _Layer(NamedTuple):
    """What the kernels of a layer behind the candidates', or of the readout, read of it."""

    currents: Tensor  # (N, T, H)
    weight: Tensor  # from the layer before, (H before, H)
    beta: Tensor  # (H,)
    fire_at: Tensor  # (H,)
    level: Tensor  # (H,)


class _Rows(NamedTuple):
    """R trains in place of the incumbent's."""

    sample: Tensor  # (R,), int64
    sender: Tensor  # (R,), int64: u at first; 0 once the changes are those of all neurons of a layer
    first: Tensor  # (R,), int64: when the train changes first


def lif_train_costs(shifts: Tensor, hidden: Hidden, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_train_costs`.

    Raises:
        ValueError: If there are more classes than a program can hold.
    """
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    samples, steps, classes = readout.currents.shape
    if classes > _MOST_CLASSES:
        raise ValueError(
            f"lif_train_costs: on CUDA there may be at most {_MOST_CLASSES} classes, got {classes}; "
            "set POLYSTEP_KERNELS=reference."
        )
    units, count = len(hidden.betas[0]), shifts.shape[2]
    costs = [shifts.new_empty((0, count), dtype=torch.float64)]
    if count == 0:
        return costs[0].new_empty(units, 0)
    layers = _layers_behind(hidden, readout)
    at_once = max(1, _WORDS // (samples * triton.cdiv(steps, 64) * (count + 1)))
    for start in range(0, units, at_once):
        trains = _simulate(shifts, hidden, slice(start, start + at_once), steps)
        alike = _find_alike(trains)
        column = torch.arange(count + 1, device=alike.device)
        unit, sample, example = place = ((alike == column) & (column > 0)).nonzero(as_tuple=True)
        table = torch.zeros(alike.shape, dtype=torch.float64, device=alike.device)
        if len(sample):
            before, after = trains[..., 0][unit, sample], trains[unit, sample, :, example]
            table[place] = _loss_changes(layers, hidden, readout, before, after, sample, start + unit)
        costs.append(sum_over_samples(table.gather(2, alike))[:, 1:])
    return torch.cat(costs)


def _layers_behind(hidden: Hidden, readout: Readout) -> list[_Layer]:
    """Return the hidden layers behind that of the candidates, and the readout."""
    behind = [
        (*parts, hidden.spike_on)
        for parts in zip(hidden.currents[1:], hidden.betas[1:], hidden.thresholds[1:], strict=True)
    ]
    behind.append((readout.currents, readout.beta, readout.threshold, readout.spike_on))
    return [
        _Layer(
            currents.contiguous(),
            weight.T.contiguous(),
            beta.clamp(0, 1).contiguous(),
            fire_at(threshold, spike_on).contiguous(),
            threshold.contiguous(),
        )
        for weight, (currents, beta, threshold, spike_on) in zip(hidden.weights, behind, strict=True)
    ]


def _simulate(shifts: Tensor, hidden: Hidden, part: slice, steps: int) -> Tensor:
    """Return trains (units, N, words, 1 + V), int64, step t the bit t % 64 of word t // 64; the incumbent's first."""
    currents, beta, level = hidden.currents[0][..., part], hidden.betas[0][part], hidden.thresholds[0][part]
    (samples, shift_steps, count), units, words = shifts.shape, len(beta), triton.cdiv(steps, 64)
    trains = torch.empty(units, samples, words, count + 1, dtype=torch.int64, device=shifts.device)
    _simulate_kernel[(units, triton.cdiv(count + 1, _BLOCK), triton.cdiv(samples, _SAMPLES))](
        shifts.contiguous(),
        currents.contiguous(),
        beta.clamp(0, 1).contiguous(),
        fire_at(level, hidden.spike_on).contiguous(),
        level.contiguous(),
        trains,
        samples,
        steps,
        words,
        units,
        count,
        shift_steps,
        currents.shape[1],
        MODE=reset_mode(hidden.reset_mechanism, hidden.reset_delay),
        SAMPLES=_SAMPLES,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )
    return trains


def _find_alike(trains: Tensor) -> Tensor:
    """Return for each train the first column that holds the same, (units, N, 1 + V), int64."""
    units, samples, words, width = trains.shape
    alike = trains.new_empty(units, samples, width)
    grid = (units, triton.cdiv(width, _BLOCK), triton.cdiv(samples, _SAMPLES))
    _alike_kernel[grid](trains, alike, samples, words, width, SAMPLES=_SAMPLES, BLOCK=_BLOCK)
    return alike


def _loss_changes(
    layers: list[_Layer], hidden: Hidden, readout: Readout, before: Tensor, after: Tensor, sample: Tensor, unit: Tensor
) -> Tensor:
    """Return how trains in place of the incumbent's, both (R, words), change the loss of their samples, (R,)."""
    *behind, last = layers
    steps, target = readout.currents.shape[1], target_weights(readout).contiguous()
    at_once = max(1, _SPIKES // (steps * max([1, *(len(layer.beta) for layer in behind)])))
    t = torch.arange(steps, device=before.device)
    changes_of_losses = []
    for old, new, n, u in zip(*(x.split(at_once) for x in (before, after, sample, unit)), strict=True):
        fired, fires = ((train[:, t // 64] >> (t % 64) & 1).to(torch.int8) for train in (old, new))
        rows = _Rows(n, u, (fires != fired).int().argmax(1))
        changes = (fires - fired).T[:, None].contiguous()
        for layer in behind:
            changes = _run_layer(layer, rows, changes, reset_mode(hidden.reset_mechanism, hidden.reset_delay))
            rows = rows._replace(sender=torch.zeros_like(u))
        changes_of_losses.append(_run_readout(last, rows, changes, readout, target))
    return torch.cat(changes_of_losses)


def _run_layer(layer: _Layer, rows: _Rows, changes: Tensor, mode: int) -> Tensor:
    """Return how changed spikes (T, H before, R) of one layer change those of the next, (T, H, R), int8."""
    (steps, senders, count), neurons = changes.shape, len(layer.beta)
    out = changes.new_empty(steps, neurons, count)
    _layer_kernel[(triton.cdiv(count, _ROWS), triton.cdiv(neurons, _NEURONS))](
        changes,
        *rows,
        *layer,
        out,
        steps,
        senders,
        neurons,
        count,
        MODE=mode,
        ROWS=_ROWS,
        NEURONS=_NEURONS,
        enable_fp_fusion=False,
    )
    return out


def _run_readout(layer: _Layer, rows: _Rows, changes: Tensor, readout: Readout, target: Tensor) -> Tensor:
    """Return how changed spikes (T, H before, R) change the losses, (R,), float64."""
    (steps, senders, count), classes = changes.shape, len(layer.beta)
    lanes = triton.next_power_of_2(classes)
    in_program = max(1, min(_ROWS, _LANES // lanes))
    out = target.new_empty(count)
    _readout_kernel[(triton.cdiv(count, in_program),)](
        changes,
        *rows,
        *layer,
        target,
        out,
        steps,
        senders,
        classes,
        count,
        MODE=reset_mode(readout.reset_mechanism, readout.reset_delay),
        LOSS=LOSSES[readout.loss],
        ROWS=in_program,
        NEURONS=lanes,
        enable_fp_fusion=False,
    )
    return out


@triton.jit
def _simulate_kernel(
    shifts_ptr,
    currents_ptr,
    beta_ptr,
    fire_at_ptr,
    level_ptr,
    trains_ptr,
    samples,
    steps,
    words,
    units,
    count,
    shift_steps,
    current_steps,
    MODE: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit, start = tl.program_id(0), tl.program_id(2) * SAMPLES
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # the first is the incumbent
    inside, shifted = v <= count, (v > 0) & (v <= count)
    beta, fire_at, level = tl.load(beta_ptr + unit), tl.load(fire_at_ptr + unit), tl.load(level_ptr + unit)
    for i in range(tl.minimum(SAMPLES, samples - start)):
        sample = start.to(tl.int64) + i
        membrane = tl.zeros([BLOCK], shifts_ptr.dtype.element_ty)
        for word in range(words):
            train = tl.zeros([BLOCK], tl.int64)
            for t in range(word * 64, tl.minimum(word * 64 + 64, steps)):
                now = sample * current_steps + tl.minimum(t, current_steps - 1)
                current = tl.load(currents_ptr + now * units + unit)
                now = sample * shift_steps + tl.minimum(t, shift_steps - 1)
                shift = tl.load(shifts_ptr + now * count + v - 1, mask=shifted, other=0.0)
                membrane, spike = step(membrane, current + shift, beta, fire_at, level, MODE)
                train |= spike.to(tl.int64) << (t % 64)
            row = ((unit * samples + sample) * words + word) * (count + 1)
            tl.store(trains_ptr + row + v, train, mask=inside)


@triton.jit
def _alike_kernel(trains_ptr, alike_ptr, samples, words, width, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    unit, start = tl.program_id(0), tl.program_id(2) * SAMPLES
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < width
    for i in range(tl.minimum(SAMPLES, samples - start)):
        row = (unit * samples + start).to(tl.int64) + i
        alike = v
        for back in range(1, width + 1):  # so that the first of equal trains comes last, and stays
            other = width - back
            same = inside
            for word in range(words):
                train = trains_ptr + (row * words + word) * width
                same &= tl.load(train + v, mask=inside, other=0) == tl.load(train + other)
            alike = tl.where(same, other, alike)
        tl.store(alike_ptr + row * width + v, alike, mask=inside)


@triton.jit
def _load_rows(sample_ptr, sender_ptr, first_ptr, row, rows, steps):
    """Return the sample and the sender of each row, and when a train of any of them changes first."""
    alive = row < rows
    sample, sender = tl.load(sample_ptr + row, mask=alive, other=0), tl.load(sender_ptr + row, mask=alive, other=0)
    return sample, sender, tl.min(tl.load(first_ptr + row, mask=alive, other=steps), 0)


@triton.jit
def _drives(
    currents_ptr, changes_ptr, weight_ptr, t, steps, first, sample, sender, senders, row, rows, neuron, neurons
):
    """Return the currents at time t, as they are and with what changed spikes feed them, added sender by sender."""
    inside = (row < rows)[:, None] & (neuron < neurons)[None, :]
    drive = (sample * steps + t)[:, None] * neurons + neuron[None, :]
    drive = tl.load(currents_ptr + drive, mask=inside, other=0.0)
    fed = drive
    for j in range(tl.where(t < first, 0, senders)):
        change = tl.load(changes_ptr + (t * senders + j) * rows + row, mask=row < rows, other=0).to(drive.dtype)
        weight = tl.load(weight_ptr + (sender + j)[:, None] * neurons + neuron[None, :], mask=inside, other=0.0)
        fed += change[:, None] * weight
    return drive, fed


@triton.jit
def _layer_kernel(
    changes_ptr,
    sample_ptr,
    sender_ptr,
    first_ptr,
    currents_ptr,
    weight_ptr,
    beta_ptr,
    fire_at_ptr,
    level_ptr,
    out_ptr,
    steps,
    senders,
    neurons,
    rows,
    MODE: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    neuron = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    alive, real = row < rows, neuron < neurons
    inside = alive[:, None] & real[None, :]
    sample, sender, first = _load_rows(sample_ptr, sender_ptr, first_ptr, row, rows, steps)
    beta, fire_at, level = load_constants(beta_ptr, fire_at_ptr, level_ptr, neuron, real)
    before = tl.zeros([ROWS, NEURONS], currents_ptr.dtype.element_ty)
    after = before
    for t in range(steps):
        drive, fed = _drives(
            currents_ptr, changes_ptr, weight_ptr, t, steps, first, sample, sender, senders, row, rows, neuron, neurons
        )
        before, fired = step(before, drive, beta, fire_at, level, MODE)
        after, fires = step(after, fed, beta, fire_at, level, MODE)
        place = (t * neurons + neuron)[None, :] * rows + row[:, None]
        tl.store(out_ptr + place, fires.to(tl.int8) - fired.to(tl.int8), mask=inside)


@triton.jit
def _readout_kernel(
    changes_ptr,
    sample_ptr,
    sender_ptr,
    first_ptr,
    currents_ptr,
    weight_ptr,
    beta_ptr,
    fire_at_ptr,
    level_ptr,
    target_ptr,
    out_ptr,
    steps,
    senders,
    classes,
    rows,
    MODE: tl.constexpr,
    LOSS: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    row, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, NEURONS)
    alive, real = row < rows, c < classes
    inside = alive[:, None] & real[None, :]
    sample, sender, first = _load_rows(sample_ptr, sender_ptr, first_ptr, row, rows, steps)
    beta, fire_at, level = load_constants(beta_ptr, fire_at_ptr, level_ptr, c, real)
    target = tl.load(target_ptr + sample[:, None] * classes + c[None, :], mask=inside, other=0.0)
    before = tl.zeros([ROWS, NEURONS], currents_ptr.dtype.element_ty)
    after = before
    old, new = tl.zeros([ROWS, NEURONS], tl.int32), tl.zeros([ROWS, NEURONS], tl.int32)
    for t in range(steps):
        drive, fed = _drives(
            currents_ptr, changes_ptr, weight_ptr, t, steps, first, sample, sender, senders, row, rows, c, classes
        )
        before, fired = step(before, drive, beta, fire_at, level, MODE)
        after, fires = step(after, fed, beta, fire_at, level, MODE)
        old, new = old + fired.to(tl.int32), new + fires.to(tl.int32)
    # The incumbent's loss in the same way, so that what changes nothing costs exactly nothing.
    loss = loss_of(new.to(tl.float64), after, target, real[None, :], steps, classes, LOSS)
    loss -= loss_of(old.to(tl.float64), before, target, real[None, :], steps, classes, LOSS)
    tl.store(out_ptr + row, loss, mask=alive)
