"""Score: reads off a step which operations lead to the loss, which belong together, and what lies behind values.

Nothing here knows layers; ``layers.py`` makes them of what is found. What is read is kept for steps of one structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.particles import Block
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.tape import (
    Entries,
    Entry,
    NotOnTapeError,
    Operation,
    Program,
    acts_by_signs,
    compile_program,
    entries_of,
    is_elementwise,
    moves,
    operations_towards,
    product_of,
    products_of,
)

# Operations behind layers that are read, all layers of a step together.
_MOST_READ = 100_000
_NOT_ALONE = "it does not reach the loss of each sample by products alone"


@dataclass(frozen=True)
class Reading:
    """Reads a step.

    Args:
        recording: The step.
    """

    recording: Recording

    def entries(self, block: Block) -> Entries:
        """Return the products that a block's rows enter, and what lies behind if normalisations keep their statistics.

        Args:
            block: The parameters.

        Raises:
            NotOnTapeError: Where it reaches the loss in other ways too.
        """
        recording = self.recording
        tape, known, loss = recording.taken(), recording.layers, recording.loss
        key = (tape.structure(), block.name)
        if key not in known:
            assert loss is not None
            program = compile_program(tape, dict(recording.rows(block)), loss, as_recorded=True, keeps_statistics=True)
            known[key] = entries_of(tape, program, recording.leaves_of(block))
        if known[key] is None:
            raise NotOnTapeError(_NOT_ALONE)
        entries: Entries = known[key]
        return entries

    def acts_by_signs(self, block: Block) -> bool:
        """Tell whether only the signs of a block's weights matter, however large they are.

        Args:
            block: The parameters.
        """
        if self.recording.loss is None:
            return False
        try:
            return acts_by_signs(self.recording.taken(), self.entries(block))
        except NotOnTapeError:
            return False

    def products(self, block: Block) -> list[Entry]:
        """Return the products that a block's rows enter.

        Args:
            block: The parameters.

        Raises:
            NotOnTapeError: Where it reaches the loss in other ways too.
        """
        products = products_of(self.recording.taken(), self.recording.leaves_of(block))
        if products is None:
            raise NotOnTapeError(_NOT_ALONE)
        return products

    def behind(self, products: list[Entry], units: Mapping[int, int]) -> Entries:
        """Return what lies behind values.

        Args:
            products: That make them.
            units: Which axis of each value is that of its units.

        Raises:
            NotOnTapeError: Where it cannot be read, or units lead to one another.
        """
        tape, loss = self.recording.taken(), self.recording.loss
        assert loss is not None
        # What lies behind each step of time is read by itself, which takes a minute for eighty steps of an LSTM.
        known, key = self.recording.layers, (tape.structure(), "operations that were read")
        if known.setdefault(key, 0) > _MOST_READ:
            raise NotOnTapeError("it has too many steps of time to be looked at one by one")
        program = compile_program(tape, units, loss, as_recorded=True, keeps_statistics=True)
        known[key] += len(program.steps)
        inside = {made for step in program.steps for made in program.operation(tape, step.number).outputs}
        if program.unit is None or program.sample is None or not inside.isdisjoint(units):
            raise NotOnTapeError("a layer behind it goes into itself, or mixes samples")
        return Entries(products, [], program)

    def operations(self) -> list[Operation]:
        """Return the operations of the step that lead to the loss."""
        recording = self.recording
        assert recording.loss is not None
        key = (recording.taken().structure(), "operations")
        if key not in recording.layers:
            recording.layers[key] = operations_towards(recording.taken(), recording.loss)
        operations: list[Operation] = recording.layers[key]
        return operations

    def alike(self, product: Entry) -> list[Entry]:
        """Return the products that make one layer with a product: all with its weights, or itself of a recurrence.

        Args:
            product: The product.
        """
        tape = self.recording.taken()
        each = (product_of(tape, operation) for operation in self.operations())
        same = [one for one in each if one is not None and one.weight == product.weight]
        return [product] if self.is_recurrent(same) else same

    def is_recurrent(self, products: list[Entry]) -> bool:
        """Tell whether some products lead to others.

        Args:
            products: All with the same weights.
        """
        made = {each.made for each in products}
        reached = set(made)
        for operation in self.operations() if len(products) > 1 else []:
            if reached.isdisjoint(operation.operands):
                continue
            if not made.isdisjoint(operation.outputs):
                return True
            reached.update(index for index in operation.outputs if index is not None)
        return False

    def kind(self, operation: Operation) -> tuple[object, torch.Size]:
        """Return what operations have in common that do the same, as at several steps of time.

        Args:
            operation: That makes something.
        """
        made = operation.outputs[0]
        assert made is not None
        return getattr(operation.function, "overloadpacket", None), self.recording.taken().values[made].tensor.shape

    def parts(self, made: int) -> list[tuple[int, Tensor]]:
        """Return the parts into which what a product makes is cut before anything else is done with it, as heads are.

        Args:
            made: What the product makes.

        Returns:
            Each part, the last one first: its value, and which number of the whole each of its numbers is.
        """
        tape = self.recording.taken()
        whole = tape.values[made].tensor
        moved, ends = {made: torch.arange(whole.numel()).reshape(whole.shape)}, list[int]()
        for operation in self.operations():
            taken = [index for index in operation.operands if index in moved]
            if not taken:
                continue
            outputs = moves(tape, operation, moved[taken[0]])
            if outputs is None:
                ends += [index for index in taken if index not in ends]
                continue
            moved.update(outputs)
        if made in ends or any(moved[index].ndim < 2 for index in ends):
            return []
        return [(index, moved[index]) for index in reversed(ends)]

    def unit_of(self, program: Program, made: int, sink: int, operation: Operation) -> int:
        """Return which axis of what an operation makes its units are: those that it took in, or else the last one.

        Args:
            program: Of the layer whose units are taken in.
            made: What the operation makes.
            sink: What it takes in.
            operation: The operation.
        """
        values, held = self.recording.taken().values, program.position(made, program.unit)
        if held is not None:
            return held
        unit, rank, whole = program.position(sink, program.unit), values[sink].tensor.ndim, values[made].tensor.ndim
        return unit + whole - rank if unit is not None and is_elementwise(operation.function) else whole - 1
