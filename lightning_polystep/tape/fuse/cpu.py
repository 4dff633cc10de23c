"""Score: a region as a numba function, compiled once per structure and kept on disk."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.tape.frame import Frame, merged_sizes
from lightning_polystep.tape.fuse.region import Input, Region
from lightning_polystep.tape.products import shift_of_units
from lightning_polystep.tape.program import Program, Stage

_FEW_LANES = 64

_compiled: dict[str, Callable[..., None]] = {}


def source_of(region: Region, lanes: int) -> str:
    """Return the Python source of a region's loop, to be compiled by numba.

    Args:
        region: The region.
        lanes: How many it has; few are written into the loop, which is then compiled for them.
    """
    bound = str(lanes) if region.stage == Stage.SAMPLE and lanes <= _FEW_LANES else "lanes"
    names = [each.name for each in region.inputs]
    outputs = {index: f"out{number}" for number, index in enumerate(region.outputs)}
    lines = [
        "import numpy as np",
        "from numba import njit, prange",
        "",
        '@njit(cache=True, parallel=True, error_model="numpy", boundscheck=False)',
        f"def loop(units, samples, candidates, lanes, {', '.join([*names, *outputs.values()])}):",
        "    for i in prange(len(units)):",
        f"        for l in range({bound}):",
        *(f"            {statement}" for statement in region.statements),
    ]
    for index, symbols in region.outputs.items():
        lines += [f"            {outputs[index]}[{place},i,l] = {symbol.text}" for place, symbol in enumerate(symbols)]
    return "\n".join(lines) + "\n"


def _folder() -> Path:
    """Return where sources are kept, so that numba finds what it has compiled in an earlier run."""
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "lightning_polystep" / "loops"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "lightning_polystep_loops"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiled(source: str) -> Callable[..., None]:
    """Return the function of a source."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    known = _compiled.get(digest)
    if known is None:
        path = _folder() / f"loop_{digest}.py"
        if not path.exists():
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_text(source, encoding="utf-8")
            scratch.replace(path)
        spec = importlib.util.spec_from_file_location(f"lightning_polystep_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        known = _compiled[digest] = module.loop
    return known


def _loop_of(region: Region, lanes: int) -> Callable[..., None]:
    if lanes not in region.loops:
        region.loops[lanes] = compiled(source_of(region, lanes))
    return region.loops[lanes]


def run(frame: Frame, region: Region) -> None:
    """Run a region for the instances of a frame, and keep its outputs there."""
    lanes = math.prod(frame.size(label) for label in region.lanes)
    arguments = [_array(frame, region, each) for each in region.inputs]
    for each, array in zip(region.inputs, arguments, strict=True):
        # The loop does not look whether there is something where it reads.
        wide = each.kind in {"new", "old"} or array.shape[2] == (lanes if each.by_lane else 1)
        if array.shape[0] != each.places or not wide:
            raise ValueError(f"A loop of {each.places} places and {lanes} lanes was given {array.shape}.")
    count = frame.count
    outputs, kept = [], {}
    for index, symbols in region.outputs.items():
        dtype = frame.tape.values[index].tensor.dtype
        kept[index] = torch.empty(len(symbols), count, lanes, dtype=dtype)
        outputs.append(kept[index].numpy())
    samples = torch.zeros_like(frame.units) if frame.samples is None else frame.samples
    indices = (each.numpy() for each in (frame.units, samples, frame.candidates))
    _loop_of(region, lanes)(*indices, lanes, *arguments, *outputs)
    for index, tensor in kept.items():
        frame.values[index] = _unpacked(frame, region.lanes, index, tensor)


def warn_of_loops(name: str, off: float) -> None:
    """Say that loops did not do what the operations do that they stand for, and so run no more.

    Args:
        name: Of what candidates change.
        off: By how much they differed.
    """
    warnings.warn(
        f"{name}: compiled loops differ from torch by {off:.2g}, so its operations run one by one, which is slower. "
        "Please report the network.",
        stacklevel=2,
    )


def _array(frame: Frame, region: Region, each: Input) -> NDArray[Any]:
    """Return an input as (places, rows, lanes)."""
    program, index = frame.program, each.value
    if each.kind in {"unit", "sample", "shared", "rows", "old"}:
        key = (program, index, each.kind, tuple(region.lanes))
        if key not in frame.tape.arrays:
            frame.tape.arrays[key] = _recorded(frame, region, each)
        known: NDArray[Any] = frame.tape.arrays[key]
        return known
    if each.kind == "new":
        first = frame.first()
        return _packed(
            first, _samples_of(program, index), index, first.values[index], None, {program.unit}, leading=True
        )
    if each.kind == "shift":
        return _packed(frame, region.lanes, index, _shift(frame, index), None, {program.unit}, leading=True)
    tensor = frame.read(index)[0]
    return _packed(frame, region.lanes, index, tensor, None, set(frame.fixed), leading=True)


def _recorded(frame: Frame, region: Region, each: Input) -> NDArray[Any]:
    """Return what was recorded of an input, the same for all chunks of candidates."""
    program, index = frame.program, each.value
    tensor = frame.tape.values[index].tensor
    if each.kind == "rows":
        return _rows(frame, region.lanes, index, tensor)
    if each.kind == "old":
        return _packed(frame, _samples_of(program, index), index, tensor, program.unit, set(), leading=False)
    row = {"unit": program.unit, "sample": program.sample}.get(each.kind)
    return _packed(frame, region.lanes, index, tensor, row, set(), leading=False)


def _samples_of(program: Program, index: int) -> list[int]:
    """Return the label of samples where a value has it."""
    sample = program.sample
    return [] if sample is None or program.position(index, sample) is None else [sample]


def _rows(frame: Frame, lanes: list[int], index: int, matrix: Tensor) -> NDArray[Any]:
    """Bring a matrix into the order (1, rows, lanes), the same along lanes that its columns do not have."""
    columns, size = frame.program.axes[index][1], frame.size
    apart = matrix.reshape([len(matrix), *(size(label) for label in columns)])
    held = [label for label in lanes if label in columns]
    moved = apart.permute([0, *(columns.index(label) + 1 for label in held)])
    given = [size(label) if label in held else 1 for label in lanes]
    whole = [size(label) for label in lanes]
    return moved.reshape(len(matrix), *given).expand(len(matrix), *whole).reshape(1, len(matrix), -1).numpy()


def _shift(frame: Frame, made: int) -> Tensor:
    """Return what candidates add to a product at their units."""
    known = frame.shifts.get(made)
    if known is not None:
        return known
    number = frame.tape.values[made].producer
    assert number is not None
    operation = frame.program.operation(frame.tape, number)
    *added, left, right = operation.operands
    shift = shift_of_units(frame, made, added[0] if added else None, left, right)
    assert shift is not None
    return shift


def _packed(
    frame: Frame,
    lanes: list[int],
    index: int,
    tensor: Tensor,
    row: int | None,
    fixed: set[int | None],
    *,
    leading: bool,
) -> NDArray[Any]:
    """Bring a value into the order (written-out places, rows, lanes)."""
    program = frame.program
    slots = program.slots(index)

    def size(label: int) -> int:
        return frame.size(label) if leading else program.labels.size((label,))

    sizes = [1 if s is None or s in fixed else size(s) for s in slots]
    offset = 1 if leading else 0
    apart = tensor.reshape([*tensor.shape[:offset], *sizes])
    held = [s for s in slots if s in lanes and s not in fixed]
    places = [n + offset for n, s in enumerate(slots) if s not in lanes and (row is None or s != row)]
    rows = [0] if leading else [n for n, s in enumerate(slots) if row is not None and s == row]
    ordered = [slots.index(label) + offset for label in lanes if label in held]
    moved = apart.permute([*places, *rows, *ordered])
    count = int(np.prod([apart.shape[p] for p in places])) if places else 1
    height = apart.shape[rows[0]] if rows else 1
    if not held:
        return moved.reshape(count, height, 1).contiguous().numpy()
    if len(held) < len(lanes):
        whole = [size(label) for label in lanes]
        given = [size(label) if label in held else 1 for label in lanes]
        moved = moved.reshape(count, height, *given).expand(count, height, *whole)
    return moved.reshape(count, height, -1).contiguous().numpy()


def _unpacked(frame: Frame, lanes: list[int], index: int, packed: Tensor) -> Tensor:
    """Bring (places, instances, lanes) into the order of a value."""
    program = frame.program
    size, fixed = frame.size, set(frame.fixed)
    slots = program.slots(index)
    held = [label for label in lanes if label in slots and label not in fixed]
    places = [n for n, s in enumerate(slots) if s not in held]
    place_sizes = [1 if slots[n] is None or slots[n] in fixed else size(slots[n]) for n in places]  # type: ignore[arg-type]
    lane_sizes = [size(label) if label in held else 1 for label in lanes]
    tensor = packed
    if len(held) < len(lanes):
        whole = [size(label) for label in lanes]
        tensor = packed.reshape(*packed.shape[:2], *whole)
        for axis, label in enumerate(lanes):
            if label not in held:
                tensor = tensor.narrow(axis + 2, 0, 1)
    apart = tensor.reshape(*place_sizes, packed.shape[1], *[s for s, lab in zip(lane_sizes, lanes, strict=True)
                                                            if lab in held])  # fmt: skip
    order = [len(places)]
    for n, s in enumerate(slots):
        order.append(places.index(n) if n in places else len(places) + 1 + held.index(s))  # type: ignore[arg-type]
    return apart.permute(order).reshape(packed.shape[1], *merged_sizes(program, index, fixed, frame.size))
