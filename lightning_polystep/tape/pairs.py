"""Score: which pairs of a candidate and a sample go on, and which of them are the same.

A pair in which the candidate's unit does what it did in the step is left out. Candidates of one unit that make it do
the same on a sample, as spike trains often are, go on as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.program import Stage

# What a unit does on a sample is compared by a sum with random weights, which is the same for two that differ only once
# in about 10^15.
_SIGNATURE_SEED = 20_260
_MOST_KINDS = 48


def pairs_of(units: Frame, exits: list[int]) -> Frame:
    """Return the frame of the pairs in which a unit does something else than in the step.

    Args:
        units: Of stage ``UNIT``.
        exits: Values of earlier stages that are read from now on.
    """
    # Kinds are told apart by a loop of numba, which reads the memory of the processor.
    signature = _signatures(units, exits) if units.candidates.device.type == "cpu" else None
    if signature is None:
        return _all_pairs(units, exits)
    new, old = signature
    ids, candidates, samples = _kinds(new.numpy(), old.numpy(), units.units.numpy())
    if not len(candidates):
        candidates = samples = np.zeros(1, dtype=np.int64)
    return _frame(units, torch.from_numpy(candidates), torch.from_numpy(samples), torch.from_numpy(ids))


def _frame(units: Frame, candidates: Tensor, samples: Tensor, members: Tensor | None) -> Frame:
    """Return the frame of some pairs."""
    return Frame(
        units.tape, units.program, Stage.SAMPLE, candidates, units.units[candidates], samples,
        earlier=(units, candidates), members=members, everyone=units.count,
    )  # fmt: skip


def _signatures(units: Frame, exits: list[int]) -> tuple[Tensor, Tensor] | None:
    """Return a number for what each candidate's unit does on each sample, (K, N), and the step's, (units, N)."""
    program, sample = units.program, units.program.sample
    if any(program.position(index, sample) is None or units.values[index].is_complex() for index in exits):
        return None
    if not exits:
        return None
    key = (program, "signatures", tuple(exits))
    if key not in units.tape.arrays:  # the same for all chunks of candidates
        recorded = {index: units.tape.values[index].tensor for index in exits}
        units.tape.arrays[key] = _weighted_sum(units, recorded, set(), 0)
    new = _weighted_sum(units, {index: units.values[index] for index in exits}, {program.unit}, 1)
    old: Tensor = units.tape.arrays[key]
    # Beside what is infinite nothing else would count.
    return (new, old) if bool(new.isfinite().all() and old.isfinite().all()) else None


def _weighted_sum(units: Frame, values: Mapping[int, Tensor], fixed: set[int | None], offset: int) -> Tensor:
    """Return a sum of all that stands for a candidate or unit and a sample, with the same random weights each time."""
    draw = np.random.default_rng(_SIGNATURE_SEED)
    terms = (
        places[:, :, place].double() * float(draw.uniform(0.5, 1.5))
        for index, tensor in values.items()
        for places in (with_samples_first(units, index, tensor, fixed, offset),)
        for place in range(places.shape[2])
    )
    return reduce(torch.add, terms).contiguous()


def with_samples_first(frame: Frame, index: int, tensor: Tensor, fixed: set[int | None], offset: int) -> Tensor:
    """Return a value as (candidates or units, samples, all else)."""
    program = frame.program
    slots = program.slots(index)
    sizes = [1 if s is None or s in fixed else frame.size(s) if offset else program.labels.size((s,)) for s in slots]
    apart = tensor.reshape([*tensor.shape[:offset], *sizes])
    first = [slots.index(program.sample) + offset]
    first = ([0] if offset else [slots.index(program.unit)]) + first
    rest = [axis for axis in range(apart.ndim) if axis not in first]
    moved = apart.permute(*first, *rest)
    return moved.reshape(*moved.shape[:2], -1)


@njit(cache=True, nogil=True)
def _count_kinds(
    new: NDArray[Any], old: NDArray[Any], units: NDArray[Any], ids: NDArray[Any], most: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Number the kinds of what units do on samples; fill ``ids`` with them, -1 where nothing changes."""
    count, samples = new.shape
    candidates, of_samples = np.empty(count * samples, np.int64), np.empty(count * samples, np.int64)
    found = 0
    first = 0
    seen, known = np.empty((samples, most)), np.empty((samples, most), np.int64)
    filled = np.zeros(samples, np.int64)
    for k in range(count):
        if k > first and units[k] != units[first]:
            first = k
            filled[:] = 0
        for n in range(samples):
            value = new[k, n]
            if value == old[units[k], n]:
                ids[k, n] = -1
                continue
            match = -1
            for place in range(filled[n]):
                if seen[n, place] == value:
                    match = known[n, place]
                    break
            if match < 0:
                match = found
                candidates[found], of_samples[found] = k, n
                found += 1
                if filled[n] < most:
                    seen[n, filled[n]], known[n, filled[n]] = value, match
                    filled[n] += 1
            ids[k, n] = match
    return candidates[:found], of_samples[:found]


def _kinds(
    new: NDArray[Any], old: NDArray[Any], units: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    ids = np.empty(new.shape, np.int64)
    candidates, samples = _count_kinds(new, old, units, ids, _MOST_KINDS)
    return ids, candidates, samples


def _all_pairs(units: Frame, exits: list[int]) -> Frame:
    """Return the frame of all pairs that may differ, each for itself."""
    program = units.program
    assert program.sample is not None
    changed = torch.zeros(units.count, units.size(program.sample), dtype=torch.bool, device=units.candidates.device)
    for index in exits:
        differs = units.values[index] != units.recorded(index)[0]
        if program.position(index, program.sample) is None:
            changed |= differs.flatten(1).any(1)[:, None]
        else:
            changed |= with_samples_first(units, index, differs, {program.unit}, 1).any(2)
    pairs = changed.nonzero()
    if not len(pairs):
        pairs = pairs.new_zeros(1, 2)
    candidates, samples = pairs.unbind(1)
    return _frame(units, candidates, samples, None)


def next_level(frame: Frame, exits: list[int]) -> Frame:
    """Keep the instances in which something that is read from now on has changed.

    Args:
        frame: Of stage ``SAMPLE``, the level before.
        exits: Values of earlier stages and levels that are read from now on.
    """
    changed = torch.zeros(frame.count, dtype=torch.bool, device=frame.candidates.device)
    for index in exits:
        if frame.enters(index):
            new, old = frame.at_unit(index), frame.recorded(index, with_unit=True)[0]
        else:
            new, old = frame.read(index)[0], frame.recorded(index)[0]
        changed |= (new != old).flatten(1).any(1)
    kept = changed.nonzero().squeeze(1)
    kept = kept if len(kept) else kept.new_zeros(1)
    return Frame(
        frame.tape,
        frame.program,
        Stage.SAMPLE,
        frame.candidates[kept],
        frame.units[kept],
        None if frame.samples is None else frame.samples[kept],
        earlier=(frame, kept),
        everyone=frame.everyone,
    )
