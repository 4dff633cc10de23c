"""Score candidates of any parameter by replaying what they change of the commit pass; no Python of the user's runs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.tier import NotOfferedError, Tier
from lightning_polystep.subspaces import candidates_wanted
from lightning_polystep.tape import (
    Call,
    Entries,
    NotOnTapeError,
    Program,
    Recorder,
    Tape,
    Work,
    compile_program,
    entries_of,
    shifted_products,
)

# Structures of a step that are kept: those of a full and of the last batch, and of what a user's step alternates.
_MOST_PROGRAMS = 64
# Numbers that one value of all candidates of a call may hold: they should stay in the cache.
_CHUNK_NUMBERS = 2**21
_LARGEST_CHUNK, _SMALLEST_CHUNK = 4096, 8
# What a step may spend on candidates, in forward passes: a gradient takes about three.
FORWARDS = 6.0
_MOST_CANDIDATES = 16_384


@dataclass
class Recording:
    """The tape of the latest commit pass, and what was read off tapes of its structure.

    Args:
        tape: What the step did; None before the first.
        loss: The value of its loss; None until it is known.
        of_stack: Whether the module says that it is a stack, all of whose tiers have to make the same step.
        learned: What tiers have learned over steps, by block and name: a checkpoint keeps it.
        divides_batches: Whether other processes see other samples.
        names: Of the module's parameters, by their identity.
        layers: What is known of layers, by the structure of the step and what their products make.
    """

    tape: Tape | None = None
    loss: int | None = None
    of_stack: bool = False
    learned: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    divides_batches: bool = False
    names: dict[int, str] = field(default_factory=dict, repr=False)
    layers: dict[object, Any] = field(default_factory=dict, repr=False)
    _scripts: dict[tuple[object, ...], Script | NotOnTapeError] = field(default_factory=dict)
    _entries: dict[Program, tuple[Entries, Script] | None] = field(default_factory=dict)
    _volatile: set[tuple[object, ...]] = field(default_factory=set)
    _calls: dict[int, Call] = field(default_factory=dict, repr=False)
    _collects: bool = field(default=False, repr=False)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the commit pass in the body."""
        self.clear()
        # A tape is thousands of small objects: to look for circles among all objects while it lives took as long again.
        self._collects = gc.isenabled()
        gc.disable()
        try:
            with Recorder(self._calls) as recorder:
                self.tape = recorder.tape
                yield
            self._calls = recorder.calls
        except BaseException:
            self.clear()
            raise

    def record(self, probe: Probe) -> None:
        """Run the step once more, isolated, and record that: where it has run already without being recorded."""

        def evaluate() -> Tensor:
            with self.recording():
                loss = probe.evaluate()
            self.ends_in(loss)
            return loss

        with probe.isolated():
            probe.rerun(evaluate)

    def clear(self) -> None:
        """Forget the tape, and with it the activations of the batch."""
        self.tape, self.loss = None, None
        if self._collects:
            self._collects = False
            gc.enable()

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not at_exit():  # then the modules that it calls are taken apart, and nothing is left to be collected
            self.clear()

    def ends_in(self, loss: Tensor) -> None:
        """Take note which tensor is the loss of the step."""
        if self.tape is not None:
            self.loss = self.tape.find(loss)

    def script(self, block: Block) -> Script:
        """Return how candidates of a block are replayed.

        Raises:
            NotOnTapeError: Where that cannot be told.
        """
        tape = self.taken()
        if self.loss is None:
            raise NotOnTapeError("what the step returned as its loss was not computed by operations of torch")
        asked = ("script", block.name, self.loss)
        if asked not in tape.arrays:
            tape.arrays[asked] = self._script(tape, block)
        script: Script = tape.arrays[asked]
        return script

    def _script(self, tape: Tape, block: Block) -> Script:
        rows = dict(self.rows(block))
        key = (block.name, self.loss, tuple(rows.items()), tape.structure())
        known = self._scripts.get(key)
        if isinstance(known, Script) and not known.program.holds_for(tape):
            # Numbers that change from step to step would have their loops compiled anew each time.
            self._volatile.add(key)
            known = None
        if known is None:
            if len(self._scripts) >= _MOST_PROGRAMS:
                for known_of in (self._scripts, self._entries, self.layers):
                    known_of.clear()
            known = self._scripts[key] = self._read(block, rows, fuse=key not in self._volatile)
        if isinstance(known, NotOnTapeError):
            raise known
        return known

    def entries(self, block: Block) -> tuple[Entries, Script] | None:
        """Return the products through which a block reaches the loss, and how shifts of them are replayed.

        None where it reaches the loss in other ways too.
        """
        tape, script = self.taken(), self.script(block)
        if script.program not in self._entries:
            entries = entries_of(tape, script.program, self.leaves_of(block))
            if entries is None:
                self._entries[script.program] = None
            else:
                shifted, fuse = {entry.made for entry in entries.products}, bool(script.loops)
                behind = Script.of(block.name, tape, entries.behind, shifted=shifted, alone=True, fuse=fuse)
                self._entries[script.program] = entries, behind
        return self._entries[script.program]

    def _read(self, block: Block, rows: dict[int, int | None], *, fuse: bool) -> Script | NotOnTapeError:
        tape = self.taken()
        assert self.loss is not None
        try:
            program = compile_program(tape, rows, self.loss)
        except NotOnTapeError as error:
            return error
        products, alone = shifted_products(tape, program, self.leaves_of(block))
        shifted = {product.made for product in products} if alone else set[int]()
        return Script.of(block.name, tape, program, products, shifted, alone=alone, fuse=fuse and _on_cpu(block))

    def rows(self, block: Block) -> Iterator[tuple[int, int | None]]:
        """Yield the values of a block's parameters, each with the axis of its rows; None where rows are no axis."""
        for parameter, index in zip(block.parameters, self.leaves_of(block), strict=True):
            if index is not None:
                is_axis = parameter.ndim > 0 and parameter.shape[0] == block.rows > 1
                yield index, 0 if is_axis else None

    def leaves_of(self, block: Block) -> list[int | None]:
        """Return the values of a block's parameters, in their order; None for one that the step does not use."""
        tape = self.taken()
        return [tape.leaves.get(id(parameter)) for parameter in block.parameters]

    def taken(self) -> Tape:
        """Return the tape.

        Raises:
            RuntimeError: Before the first commit pass.
        """
        if self.tape is None:
            raise RuntimeError("No step has been recorded.")
        return self.tape


@dataclass
class TapeTier(Tier):
    """Replays the operations behind a parameter, on what a candidate changes.

    Args:
        block: The parameters.
        recording: The commit pass.
    """

    block: Block
    recording: Recording

    name: ClassVar[str] = "tape"
    reads_tape: ClassVar[bool] = True
    fills_budget: ClassVar[bool] = True

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        script = self.recording.script(self.block)
        candidates = torch.arange(start, stop, device=proposal.rows.device)
        rows = proposal.rows[candidates // proposal.vertices_per_row]
        simple = proposal.starts is None and proposal.centre is None
        shifts = dict(self._shifts(script, proposal, candidates)) if simple else {}
        changed = {} if simple and script.shifts_only else self.changed(script.program, proposal, candidates)
        return self.replayed(script, probe, proposal.candidates, rows, changed, shifts)

    def replayed(self, script: Script, probe: Probe, replays: int, *given: Any) -> Tensor:
        """Return losses from a replay, float64.

        Args:
            script: What is replayed.
            probe: Of the micro-batch.
            replays: How many candidates are replayed in a step.
            given: Further arguments of :func:`~lightning_polystep.tape.replay`.
        """
        _, step, _ = probe.noise_key
        return script.losses(self.recording.taken(), step, replays, *given)

    def _shifts_of_directions(self, script: Script, proposal: Proposal) -> dict[int, Tensor]:
        """Return what directions add to products at reach 1, (V, N): all rows share them."""
        tape, block, known = self.recording.taken(), self.block, dict[tuple[int, tuple[int, ...]], Tensor]()
        widths = [parameter.numel() // block.rows for parameter in block.parameters]
        moved = proposal.probe_radius * proposal.directions.reshape(-1, block.dim)
        columns = (moved if proposal.starts is None else moved + proposal.starts).split(widths, dim=1)
        for product in script.products:
            key = (product.inputs, product.columns)
            if key not in known:
                shifts = columns[product.columns[0]] @ tape.values[product.inputs].tensor.T
                if len(product.columns) > 1:
                    shifts += columns[product.columns[1]]
                known[key] = shifts
        return {product.made: known[product.inputs, product.columns] for product in script.products}

    def _shifts(self, script: Script, proposal: Proposal, candidates: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield what candidates add to products."""
        vertex = candidates % proposal.vertices_per_row
        reach = proposal.reach[candidates // proposal.vertices_per_row]
        for made, shifts in self.shifts_of_step(script, proposal).items():
            own = shifts.index_select(0, vertex)
            yield made, (own if bool((reach == 1).all()) else own * reach[:, None])[:, :, None]

    def shifts_of_step(self, script: Script, proposal: Proposal) -> dict[int, Tensor]:
        """Return what directions add to products at reach 1, (V, N), computed once for all chunks of a proposal.

        Args:
            script: What is replayed.
            proposal: The candidates.
        """
        kept, key = self.recording.taken().arrays, (script.program, "shifts")
        if key not in kept or kept[key][0] is not proposal:
            kept[key] = proposal, self._shifts_of_directions(script, proposal)
        shifts: dict[int, Tensor] = kept[key][1]
        return shifts

    def changed(self, program: Program, proposal: Proposal, candidates: Tensor) -> dict[int, Tensor]:
        """Return what the parameters are for some candidates, by value: their row, or all of them.

        Args:
            program: What depends on them.
            proposal: All candidates.
            candidates: Which ones.
        """
        block, tape = self.block, self.recording.taken()
        rows, displacements = proposal.displacements_of(candidates)
        places = self.recording.leaves_of(block)
        if program.unit is None:
            whole = block.with_displaced(rows, displacements)
            return {index: each for index, each in zip(places, whole, strict=True) if index is not None}
        widths = [parameter.numel() // block.rows for parameter in block.parameters]
        found = dict[int, Tensor]()
        for index, change in zip(places, displacements.split(widths, dim=1), strict=True):
            if index is not None:
                value = tape.values[index].tensor
                found[index] = value[rows].unsqueeze(1) + change.reshape(len(rows), 1, *value.shape[1:])
        return found

    def known_loss(self) -> Tensor | None:
        """Return the loss of the commit pass."""
        loss = self.recording.loss
        return None if loss is None else self.recording.taken().values[loss].tensor.detach().double().reshape(())

    def rounding(self) -> float:
        """Return the relative error of the coarsest numbers on the tape, such as those of bfloat16."""
        kinds = {value.tensor.dtype for value in self.recording.taken().values}
        return max((torch.finfo(kind).eps for kind in kinds if kind.is_floating_point), default=0.0)

    def competes(self) -> bool:
        """Tell whether the rows are the scores of a softmax, as the tape shows."""
        script, tape = self.recording.script(self.block), self.recording.taken()
        return not self.recording.of_stack and script.program.competes(tape)

    def doubt(self) -> str:
        """Say where Python reads numbers that depend on the block: what it makes of them is not on the tape."""
        places = self.recording.script(self.block).program.escapes
        return f"Python reads numbers that depend on it in {', '.join(places[:3])}" if places else ""

    def work(self) -> Work:
        """Return what a candidate costs, and what the whole step costs, in the same unit."""
        return self.recording.script(self.block).work

    def affordable(self) -> int | None:
        """Return how many candidates cost as much as a few steps of a gradient, by what they compute."""
        work = self.work()
        return min(_MOST_CANDIDATES, max(1, int(FORWARDS * work.forward / work.candidate)))

    def work_of_budget(self) -> float:
        """Return how many numbers that computes."""
        return FORWARDS * self.work().forward

    def affords_all(self) -> bool:
        """Tell whether all directions that are wanted of the block can be replayed."""
        wanted = candidates_wanted(self.block)
        return wanted <= (self.affordable() or wanted)

    def chunking(self, memory_budget: int) -> Chunking:
        """Return how many candidates are scored at once: as many as leave values in the cache."""
        most = min(_CHUNK_NUMBERS, memory_budget // 64) // max(1, self.work().widest)
        return Chunking(min(_LARGEST_CHUNK, max(_SMALLEST_CHUNK, most)))


def _on_cpu(block: Block) -> bool:
    return all(parameter.device.type == "cpu" for parameter in block.parameters)


def offer_tape(recording: Recording, block: Block) -> TapeTier:
    """Return the tier that scores a block from the tape.

    Raises:
        NotOfferedError: Where the tape does not carry it.
    """
    try:
        recording.script(block)
    except NotOnTapeError as error:
        raise NotOfferedError(str(error)) from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A rule that fails is no reason for a run to end: there are slower ways to score.
        raise NotOfferedError(f"{type(error).__name__}: {error}") from error
    return TapeTier(block, recording)
