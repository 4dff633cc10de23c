"""Score: the layers of a step, and what a change of what they make is worth to the loss, from the last to the first.

A layer is all products of a step with the same weights. Its units' answers end at the next products (``answers.py``).
What these are worth follows from the layers behind, which are looked at in the same way, up to the scores
(``worth.py``). Layers are found once for steps of one structure, and looked at once a step, whoever asks. What of the
step belongs together is read in ``reading.py``; what is learned of layers goes by the names of ``naming.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from lightning_polystep.particles import Block
from lightning_polystep.scoring.alike import Alike, how_it_answers
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.choosing import Choosing, is_choice
from lightning_polystep.scoring.feedback import MOST_NUMBERS, Feedback
from lightning_polystep.scoring.layer import Answering, Layer, Part, Parted, Together
from lightning_polystep.scoring.naming import Naming
from lightning_polystep.scoring.number import Number
from lightning_polystep.scoring.reading import Reading
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
    Stage,
    has_way_back,
    never_answers,
    product_of,
)


class Layers:
    """Finds layers.

    Args:
        recording: The step.
        scores: Of it.

    Attributes:
        reading: What of the step belongs together.
    """

    def __init__(self, recording: Recording, scores: Scores) -> None:
        self.recording = recording
        self.scores = scores
        self.reading = Reading(recording)
        self._naming = Naming(recording)

    def entries(self, block: Block) -> Entries:
        """Return the products that a block's rows enter; see :meth:`Reading.entries`.

        Args:
            block: The parameters.

        Raises:
            NotOnTapeError: Where it reaches the loss in other ways too.
        """
        return self.reading.entries(block)

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
            products = self.reading.products(block)
            layer = self.of_products(products)
            known[key] = Entries(products, [], recording.script(block).program), layer
        entries, layer = known[key]
        return entries, layer

    def layer(self, entries: Entries, name: str | None = None, *, partly: bool = False) -> Layer:
        """Return the layer of some products.

        Args:
            entries: All products of the same rows, and what lies behind.
            partly: Whether to leave out what takes units in but is not known, if something else is.
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
                takers, left_out = self._takers(answers)
                worth = ByTakers(answers, takers, list(dict.fromkeys(map(str, left_out))))
                layer = Answering(answers, worth, self._alike(answers))
                if not takers and not left_out:
                    raise NotOnTapeError("nothing that is known takes in what it passes on")
                known[key] = left_out[0] if left_out else layer
                if left_out and takers:
                    known[*key, "partly"] = layer
            except NotOnTapeError as error:
                known[key] = error
        found = known.get((*key, "partly"), known[key]) if partly else known[key]
        if isinstance(found, Layer):
            return found
        if name is None:
            raise found
        by_feedback = (*key, "feedback")
        if by_feedback not in known:
            known[by_feedback] = self._by_feedback(self._answers(entries), name)
        feedback: Layer = known[by_feedback]
        return feedback

    def _answers(self, entries: Entries) -> Answers:
        recording = self.recording
        memory = self._naming.reaches(entries)
        return Answers.of(recording.taken(), entries, memory, evenly=recording.divides_batches)

    def _alike(self, answers: Answers) -> Alike | None:
        """Return the layers that answer as one does, to which it is added."""
        tape = self.recording.taken()
        found = how_it_answers(tape, answers)
        if found is None:
            return None
        described, values = found
        alike: Alike = self.recording.layers.setdefault((tape.structure(), "alike", described), Alike())
        alike.add(answers, values)
        return alike

    def _takers(self, answers: Answers) -> tuple[list[Taker], list[NotOnTapeError]]:
        """Return what takes in what units pass on, as far as it is known, and what is not known."""
        tape, program = self.recording.taken(), answers.program
        takers, left_out = list[Taker](), list[NotOnTapeError]()
        kinds = dict[tuple[object, torch.Size], dict[int, list[tuple[int, Operation]]]]()
        for step in reversed(program.steps):  # the last steps of time first, because those before lead there
            operation = program.operation(tape, step.number)
            taken = [index for index in operation.operands if index in answers.sinks]
            if not taken or (step.stage == Stage.UNIT and step.number not in answers.apart):
                continue
            made = operation.outputs[0]
            if made is not None and has_way_back(operation) and product_of(tape, operation) is None:
                same = kinds.setdefault(self.reading.kind(operation), {})
                same.setdefault(made, []).extend((sink, operation) for sink in dict.fromkeys(taken))
            elif not never_answers(operation):
                try:
                    takers.append(self._by_itself(answers, operation, taken))
                except NotOnTapeError as error:
                    left_out.append(error)
        for each in kinds.values():
            try:
                takers += self._met(answers, each)
            except NotOnTapeError as error:
                left_out.append(error)
        return takers, left_out

    def _by_itself(self, answers: Answers, operation: Operation, taken: list[int]) -> Taker:
        """Return an operation that takes in what units pass on and has no way back: a product, or a choice."""
        tape = self.recording.taken()
        product = product_of(tape, operation)
        if product is not None:
            return self._of_product(answers, product, taken)
        if is_choice(operation):
            return Choosing.of(tape, self.reading.operations(), operation, self._behind_brought)
        raise NotOnTapeError(f"{operation.function} takes it in, of which nothing is known")

    def _behind_brought(self, value: int) -> Layer:
        """Return what lies behind numbers that a choice brings."""
        last = self.recording.taken().values[value].tensor.ndim - 1
        return self.behind_kind({value: [last]})[value]

    def _of_product(self, answers: Answers, product: Entry, taken: list[int]) -> Taker:
        """Return a product that takes in what units pass on: of the readout, or of a later layer."""
        program = answers.program
        usual = taken == [product.inputs] and not product.depthwise
        if not usual or product.weight is None or program.position(taken[0], program.sample) != 0:
            raise NotOnTapeError("a product takes it in otherwise than as the inputs of a layer")
        if product.made in self.scores.made:
            return Readout(product.inputs, product.made, product.weight)
        layer = self.of_products(self.reading.alike(product))
        return self._shared(Multiplied(product.inputs, product, layer, self._naming.mirror(product)), product.made)

    def _shared(self, taker: Multiplied | Met, made: int) -> Taker:
        """Return what takes something in, one object for all layers that pass that on: it is looked at once.

        Args:
            taker: What takes it in.
            made: What it makes of that.
        """
        key = (self.recording.taken().structure(), "taker", taker.sink, made, taker.layer)
        shared: Taker = self.recording.layers.setdefault(key, taker)
        return shared

    def _met(self, answers: Answers, each: Mapping[int, Sequence[tuple[int, Operation]]]) -> list[Taker]:
        """Return operations of one kind, as at several steps of time, by what they make of which sinks."""
        units = {made: self.reading.unit_of(answers.program, made, *taken[0]) for made, taken in each.items()}
        layers = self.behind_kind({made: [unit] for made, unit in units.items()})
        return [
            self._shared(Met(sink, operation, layers[made]), made)
            for made, taken in each.items()
            for sink, operation in taken
        ]

    def of_products(self, products: list[Entry]) -> Layer:
        """Return the layer of all products with the same weights.

        Args:
            products: These.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
        made = frozenset(each.made for each in products)
        return self._once((made, "products"), lambda: self._of_products(products))

    def _once(self, what: tuple[object, ...], find: Callable[[], Layer]) -> Layer:
        """Return a layer that is looked for once for steps of one structure; while it is, it is not known.

        Args:
            what: Which layer.
            find: Finds it, or raises ``NotOnTapeError``, which is raised again each time.
        """
        known, key = self.recording.layers, (self.recording.taken().structure(), *what)
        if key not in known:
            known[key] = NotOnTapeError("it goes into itself")
            try:
                known[key] = find()
            except NotOnTapeError as error:
                known[key] = error
        if isinstance(known[key], NotOnTapeError):
            raise known[key]
        layer: Layer = known[key]
        return layer

    def _of_products(self, products: list[Entry]) -> Layer:
        if len(products) > 1 and self.reading.is_recurrent(products):
            # Each step of time is a layer of its own; the last ones first, because those before lead there.
            return Together([self.of_products([each]) for each in reversed(products)])
        return self.behind(products, dict.fromkeys((each.made for each in products), 1))

    def behind(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        """Return a layer behind others.

        Args:
            products: All that begin it.
            units: Which axis of what they make its units are.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
        return self._once((frozenset(units.items()), "behind"), lambda: self._found_behind(products, units))

    def behind_kind(self, axes: Mapping[int, Sequence[int]]) -> dict[int, Layer]:
        """Return what lies behind values of one kind, as at several steps of time: one layer, or one for each.

        Args:
            axes: By value, which of its axes may be that of its units, the likeliest first.

        Raises:
            NotOnTapeError: Where it is not known for any of them; the reason is that of the last one.
        """
        values = self.recording.taken().values
        if all(values[made].tensor.numel() == 1 for made in axes):
            return {made: self._once((made, "number"), partial(self._number, made)) for made in axes}
        entries = {made: Entry(made, made, None, None) for made in axes}
        if self.reading.is_recurrent(list(entries.values())):  # each step of time is a layer of its own
            return {made: self.behind_kind({made: each})[made] for made, each in axes.items()}
        turns = min(map(len, axes.values()))
        for turn in range(turns):
            try:
                layer = self.behind(list(entries.values()), {made: each[turn] for made, each in axes.items()})
                return dict.fromkeys(axes, layer)
            except NotOnTapeError:
                if turn == turns - 1:
                    raise
        raise NotOnTapeError("it has no axis of units")

    def _number(self, made: int) -> Layer:
        assert self.recording.loss is not None
        return Number.of(self.recording.taken(), made, self.recording.loss)

    def _found_behind(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        entries = None
        with suppress(NotOnTapeError):
            entries = self.reading.behind(products, units)
            return self.layer(entries)
        with suppress(NotOnTapeError):
            parts = [part for each in products for part in self._parts(each.made)]
            if parts:
                return Parted(products, parts)
        if entries is None:
            raise NotOnTapeError("a layer behind it goes into itself, or mixes samples")
        return self.layer(entries, partly=True)

    def _parts(self, made: int) -> list[Part]:
        """Return the parts into which what a product makes is cut at once, if it is.

        Raises:
            NotOnTapeError: Where it is not known what a part does.
        """
        whole = self.recording.taken().values[made].tensor.shape
        return [
            Part(made, whole, index, places, self.behind([Entry(index, index, None, None)], {index: places.ndim - 1}))
            for index, places in self.reading.parts(made)
        ]

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
