"""Score candidates of any parameter by replaying what they change of the commit pass; no Python of the user's runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.tier import NotOfferedError, Tier
from lightning_polystep.tape import NotOnTapeError, Program, Recorder, Tape, Work, compile_program, replay

# Structures of a step that are kept: those of a full and of the last batch, and of what a user's step alternates.
_MOST_PROGRAMS = 64
# Candidates at once: values should stay in the cache, and the cost of a call be shared by many.
_LARGEST_CHUNK, _SMALLEST_CHUNK = 1024, 8
_CHUNK_BYTES = 4 * 2**20
# What a step may spend on candidates, in forward passes: a gradient takes about three.
_FORWARDS = 8.0
_MOST_CANDIDATES = 16_384


@dataclass
class Recording:
    """The tape of the latest commit pass, and the programs that were read off tapes of its structure.

    Args:
        tape: What the step did; None before the first.
        loss: The value of its loss; None until it is known.
    """

    tape: Tape | None = None
    loss: int | None = None
    _programs: dict[tuple[object, ...], Program | NotOnTapeError] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the commit pass in the body."""
        self.clear()
        with Recorder() as recorder:
            self.tape = recorder.tape
            yield

    def record(self, probe: Probe) -> None:
        """Run the step once more, isolated, and record that: where it has run already without being recorded."""

        def evaluate() -> Tensor:
            with self.recording():
                loss = probe.evaluate()
            self.ends_in(loss)
            return loss

        with probe.isolated():
            probe.run(evaluate)

    def clear(self) -> None:
        """Forget the tape, and with it the activations of the batch."""
        self.tape, self.loss = None, None

    def ends_in(self, loss: Tensor) -> None:
        """Take note which tensor is the loss of the step."""
        if self.tape is not None:
            self.loss = self.tape.find(loss)

    def program(self, block: Block) -> Program:
        """Return what has to be replayed for candidates of a block.

        Raises:
            NotOnTapeError: Where that cannot be told.
        """
        tape = self.taken()
        if self.loss is None:
            raise NotOnTapeError("what the step returned as its loss was not computed by operations of torch")
        rows = dict(self.rows(block))
        key = (block.name, self.loss, tuple(rows.items()), tape.structure())
        known = self._programs.get(key)
        if known is None or (isinstance(known, Program) and not known.holds_for(tape)):
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.clear()
            try:
                known = compile_program(tape, rows, self.loss)
            except NotOnTapeError as error:
                known = error
            self._programs[key] = known
        if isinstance(known, NotOnTapeError):
            raise known
        return known

    def rows(self, block: Block) -> Iterator[tuple[int, int | None]]:
        """Yield the values of a block's parameters, each with the axis of its rows; None where rows are no axis."""
        tape = self.taken()
        for parameter in block.parameters:
            index = tape.leaves.get(id(parameter))
            if index is not None:
                is_axis = parameter.ndim > 0 and parameter.shape[0] == block.rows > 1
                yield index, 0 if is_axis else None

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

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        del probe  # no user code runs
        program, tape = self.recording.program(self.block), self.recording.taken()
        rows, displacements = proposal.displacements(start, stop)
        return replay(tape, program, rows, dict(self._changed(program, rows, displacements))).double()

    def _changed(self, program: Program, rows: Tensor, displacements: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield what the parameters are for each candidate: their row, or all of them."""
        block, tape = self.block, self.recording.taken()
        widths = [parameter.numel() // block.rows for parameter in block.parameters]
        for parameter, change in zip(block.parameters, displacements.split(widths, dim=1), strict=True):
            index = tape.leaves.get(id(parameter))
            if index is None:
                continue
            value = tape.values[index].tensor
            if program.unit is not None:
                yield index, value[rows].unsqueeze(1) + change.reshape(len(rows), 1, *value.shape[1:])
            else:
                flat = value.reshape(block.rows, -1).repeat(len(rows), 1, 1)
                flat[torch.arange(len(rows), device=rows.device), rows] += change
                yield index, flat.reshape(len(rows), *value.shape)

    def doubt(self) -> str:
        """Say where Python reads numbers that depend on the block: what it makes of them is not on the tape."""
        places = self.recording.program(self.block).escapes
        return f"Python reads numbers that depend on it in {', '.join(places[:3])}" if places else ""

    def work(self) -> Work:
        """Return what a candidate costs, and what the whole step costs, in the same unit."""
        return Work.of(self.recording.taken(), self.recording.program(self.block))

    def affordable(self) -> int | None:
        """Return how many candidates cost as much as a few steps of a gradient, by what they compute."""
        work = self.work()
        return min(_MOST_CANDIDATES, max(1, int(_FORWARDS * work.forward / work.candidate)))

    def chunking(self, memory_budget: int) -> Chunking:
        """Return how many candidates are scored at once: as many as leave values in the cache."""
        bytes_each = self.work().widest * 4
        affordable = min(memory_budget // 8, _CHUNK_BYTES) // max(1, bytes_each)
        return Chunking(min(_LARGEST_CHUNK, max(_SMALLEST_CHUNK, affordable)))


def offer_tape(recording: Recording, block: Block) -> TapeTier:
    """Return the tier that scores a block from the tape.

    Raises:
        NotOfferedError: Where the tape does not carry it.
    """
    try:
        recording.program(block)
    except NotOnTapeError as error:
        raise NotOfferedError(str(error)) from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A rule that fails is no reason for a run to end: there are slower ways to score.
        raise NotOfferedError(f"{type(error).__name__}: {error}") from error
    return TapeTier(block, recording)
