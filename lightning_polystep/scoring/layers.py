"""Score: the layers of a step, and what a change of what they make is worth to the loss, from the last to the first.

A layer is all products of a step with the same weights. Its units' answers end at the next products (``answers.py``).
What these are worth follows from the layers behind, which are looked at in the same way, up to the scores
(``worth.py``). Layers are found once for steps of one structure, and looked at once a step, whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lightning_polystep.particles import Block
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.feedback import MOST_NUMBERS, Feedback
from lightning_polystep.scoring.layer import Answering, Layer, Part, Parted, Together
from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Met, Multiplied, Readout, Taker
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.worth import ByFeedback, ByTakers
from lightning_polystep.tape import (
    Dense,
    Entries,
    Entry,
    NotOnTapeError,
    Operation,
    Program,
    Stage,
    compile_program,
    entries_of,
    has_way_back,
    is_elementwise,
    moves,
    operations_towards,
    product_of,
    products_of,
    products_with,
)

# Where mirrors, and how strongly places reach others, are kept among what was learned: no parameter has such a name.
_MIRRORS, _REACHES = "mirrors of", "reaches of"


@dataclass
class Layers:
    """Finds layers.

    Args:
        recording: The step.
        scores: Of it.
    """

    recording: Recording
    scores: Scores

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
            program = compile_program(tape, dict(recording.rows(block)), loss, as_recorded=True)
            known[key] = entries_of(tape, program, recording.leaves_of(block))
        if known[key] is None:
            raise NotOnTapeError("it does not reach the loss of each sample by products alone")
        entries: Entries = known[key]
        return entries

    def parted(self, block: Block) -> tuple[Entries, Layer]:
        """Return the products of a block whose units are cut into parts at once, and their layer.

        Args:
            block: The parameters.

        Raises:
            NotOnTapeError: Where they are not, or reach the loss in other ways too.
        """
        recording = self.recording
        tape, known = recording.taken(), recording.layers
        key = (tape.structure(), block.name, "parted")
        if key not in known:
            products = products_of(tape, recording.leaves_of(block))
            if products is None:
                raise NotOnTapeError("it does not reach the loss of each sample by products alone")
            layer = self.of_products(products)
            known[key] = Entries(products, [], recording.script(block).program), layer
        entries, layer = known[key]
        return entries, layer

    def layer(self, entries: Entries, name: str | None = None) -> Layer:
        """Return the layer of some products.

        Args:
            entries: All products of the same rows, and what lies behind.
            name: Of a block that learns feedback where something else lies behind than layers; None if it does not.

        Raises:
            NotOnTapeError: Where it is not known what its units do.
        """
        tape, known = self.recording.taken(), self.recording.layers
        key = (tape.structure(), frozenset(entry.made for entry in entries.products))
        if key not in known:
            known[key] = NotOnTapeError("it goes into itself")
            try:
                answers = self._answers(entries)
                known[key] = Answering(answers, ByTakers(answers, list(self._takers(answers))))
            except NotOnTapeError as error:
                known[key] = error
        found = known[key]
        if isinstance(found, Layer):
            return found
        if name is None:
            raise found
        by_feedback = (*key, "feedback")
        if by_feedback not in known:
            known[by_feedback] = self._by_feedback(self._answers(entries), name)
        layer: Layer = known[by_feedback]
        return layer

    def _answers(self, entries: Entries) -> Answers:
        tape, product = self.recording.taken(), entries.products[0]
        name = f"value {product.made}" if product.weight is None else self._name_of(product.weight)
        places = " by ".join(str(size) for size in tape.values[product.made].tensor.shape[1:])
        memory = self.recording.learned.setdefault(f"{_REACHES} {name}, {places}", {})
        return Answers.of(tape, entries, memory, evenly=self.recording.divides_batches)

    def _takers(self, answers: Answers) -> Iterator[Taker]:
        """Yield what takes in what units pass on.

        Raises:
            NotOnTapeError: Where something else does than what is known here.
        """
        tape, program = self.recording.taken(), answers.program
        met: list[tuple[int, Operation]] = []
        for step in program.steps:
            operation = program.operation(tape, step.number)
            taken = [index for index in operation.operands if index in answers.sinks]
            if not taken or (step.stage == Stage.UNIT and step.number not in answers.apart):
                continue
            product = product_of(tape, operation)
            if product is None:
                met += [(sink, operation) for sink in dict.fromkeys(taken)]
            elif taken != [product.inputs] or program.position(product.inputs, program.sample) != 0:
                raise NotOnTapeError("what it passes on goes into something else than a layer")
            elif product.made in self.scores.made:
                assert product.weight is not None
                yield Readout(product.inputs, product.weight)
            else:
                assert product.weight is not None
                products = products_with(tape, program, product.weight)
                layer = self.of_products([product] if self.is_recurrent(products) else products)
                yield Multiplied(product.inputs, product, layer, self._mirror(product))
        yield from self._met(answers, met)

    def _met(self, answers: Answers, met: Sequence[tuple[int, Operation]]) -> Iterator[Taker]:
        """Yield sums, differences, factors and norms, those of the same kind, as at several steps of time, together.

        Args:
            answers: Of the units.
            met: What they pass on, and the operation that takes it.

        Raises:
            NotOnTapeError: Where something else takes units in.
        """
        tape, program = self.recording.taken(), answers.program
        kinds = dict[tuple[object, torch.Size], dict[int, list[tuple[int, Operation]]]]()
        for sink, operation in met:
            made = operation.outputs[0]
            if made is None or not has_way_back(operation):
                raise NotOnTapeError(f"what it passes on goes into {operation.function}, of which nothing is known")
            kind = getattr(operation.function, "overloadpacket", None), tape.values[made].tensor.shape
            kinds.setdefault(kind, {}).setdefault(made, []).append((sink, operation))
        for each in kinds.values():
            units = {made: self._unit_of(program, made, *taken[0]) for made, taken in each.items()}
            try:
                together = self._behind([Entry(made, made, None, None) for made in each], units)
                layers = dict.fromkeys(each, together)
            except NotOnTapeError:  # as of a recurrence, of which each step of time is a layer of its own
                layers = {made: self._behind([Entry(made, made, None, None)], {made: units[made]}) for made in each}
            yield from (Met(sink, operation, layers[made]) for made, taken in each.items() for sink, operation in taken)

    def _unit_of(self, program: Program, made: int, sink: int, operation: Operation) -> int:
        """Return which axis of what an operation makes its units are: those that it took in, or else the last one."""
        values, held = self.recording.taken().values, program.position(made, program.unit)
        if held is not None:
            return held
        unit, rank, whole = program.position(sink, program.unit), values[sink].tensor.ndim, values[made].tensor.ndim
        return unit + whole - rank if unit is not None and is_elementwise(operation.function) else whole - 1

    def of_products(self, products: list[Entry]) -> Layer:
        """Return the layer of all products with the same weights.

        Args:
            products: These.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
        known, made = self.recording.layers, frozenset(each.made for each in products)
        key = (self.recording.taken().structure(), made, "products")
        if key not in known:
            known[key] = NotOnTapeError("it goes into itself")
            try:
                known[key] = self._of_products(products)
            except NotOnTapeError as error:
                known[key] = error
        if isinstance(known[key], NotOnTapeError):
            raise known[key]
        layer: Layer = known[key]
        return layer

    def _of_products(self, products: list[Entry]) -> Layer:
        if len(products) > 1 and self.is_recurrent(products):
            # Each step of time is a layer of its own; the last ones first, because those before lead there.
            return Together([self.of_products([each]) for each in reversed(products)])
        return self._behind(products, dict.fromkeys((each.made for each in products), 1))

    def is_recurrent(self, products: list[Entry]) -> bool:
        """Tell whether some products lead to others.

        Args:
            products: All with the same weights.
        """
        tape, made = self.recording.taken(), {each.made for each in products}
        reached = set(made)
        for operation in tape.operations:
            if reached.isdisjoint(operation.operands):
                continue
            if not made.isdisjoint(operation.outputs):
                return True
            reached.update(index for index in operation.outputs if index is not None)
        return False

    def _parts(self, made: int) -> list[Part]:
        """Return the parts into which what a product makes is cut before anything else is done with it.

        Raises:
            NotOnTapeError: Where it is not cut, or it is not known what a part does.
        """
        tape = self.recording.taken()
        whole = tape.values[made].tensor
        moved, cut, ends = {made: torch.arange(whole.numel()).reshape(whole.shape)}, False, list[int]()
        for operation in self._operations():
            taken = [index for index in operation.operands if index in moved]
            if not taken:
                continue
            outputs = moves(tape, operation, moved[taken[0]])
            if outputs is None:
                ends += [index for index in taken if index not in ends]
                continue
            moved.update(outputs)
            cut = cut or any(each.numel() != whole.numel() for each in outputs.values())
        if not cut or made in ends or any(moved[index].ndim < 2 for index in ends):
            return []
        parts = []
        for index in reversed(ends):
            layer = self._behind([Entry(index, index, None, None)], {index: moved[index].ndim - 1})
            parts.append(Part(made, index, moved[index], layer))
        return parts

    def _operations(self) -> list[Operation]:
        """Return the operations of the step that lead to the loss."""
        recording = self.recording
        assert recording.loss is not None
        key = (recording.taken().structure(), "operations")
        if key not in recording.layers:
            recording.layers[key] = operations_towards(recording.taken(), recording.loss)
        operations: list[Operation] = recording.layers[key]
        return operations

    def _behind(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        """Return a layer behind others.

        Args:
            products: All that begin it.
            units: Which axis of what they make its units are.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
        try:
            return self._answering(products, units)
        except NotOnTapeError as error:
            parts = [part for each in products for part in self._parts(each.made)]
            if not parts:
                raise error from None
            return Parted(products, parts)

    def _answering(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        tape, loss = self.recording.taken(), self.recording.loss
        assert loss is not None
        program = compile_program(tape, units, loss, as_recorded=True)
        inside = {made for step in program.steps for made in program.operation(tape, step.number).outputs}
        if program.unit is None or program.sample is None or not inside.isdisjoint(units):
            raise NotOnTapeError("a layer behind it goes into itself, or mixes samples")
        return self.layer(Entries(products, [], program))

    def _mirror(self, product: Entry) -> Mirror:
        """Return the mirror of a product, which all layers before it share."""
        tape = self.recording.taken()
        assert product.weight is not None
        shape = " by ".join(str(size) for size in tape.values[product.weight].tensor.shape)
        name = f"{self._name_of(product.weight)}, {shape}"
        return Mirror(name, self.recording.learned.setdefault(f"{_MIRRORS} {name}", {}))

    def _name_of(self, weight: int) -> str:
        """Return the name of a parameter from which weights are made; their place on the tape where there is none."""
        tape, names = self.recording.taken(), self.recording.names
        named = {index: names[identity] for identity, index in tape.leaves.items() if identity in names}
        needed = {weight}
        for operation in reversed(tape.operations):
            if not needed.isdisjoint(operation.outputs):
                needed.update(operation.operands)
        found = [named[index] for index in sorted(needed) if index in named]
        return found[0] if found else f"value {weight}"

    def _by_feedback(self, answers: Answers, name: str) -> Layer:
        """Return a layer behind which something else lies: learned feedback says what its units' answers are worth.

        Raises:
            NotOnTapeError: Where it would be too large, or hears nothing of some scores.
        """
        tape, program, scores = self.recording.taken(), answers.program, self.scores
        products = {entry.made for entry in answers.products}
        whole = Dense.of(tape, replace(program, as_recorded=False), products, [*answers.sinks, *scores.made])
        if any(index not in program.axes or program.position(index, program.sample) is None for index in scores.made):
            raise NotOnTapeError("it does not reach all scores")
        passed_on = sum(math.prod(layout.laid_out[1:]) for layout in answers.sinks.values())
        width = tape.values[scores.made[0]].tensor.numel() // max(1, program.samples)
        if passed_on * width > MOST_NUMBERS:
            raise NotOnTapeError("what its units do to the scores has too many numbers to be learned")
        feedback = Feedback(self.recording.learned.setdefault(name, {}))
        return Answering(answers, ByFeedback(answers, scores, whole, feedback, name))
