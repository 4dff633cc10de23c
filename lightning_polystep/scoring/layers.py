"""Score: the layers of a step, and what a change of what they make is worth to the loss, from the last to the first.

A layer is all products of a step with the same weights. Its units' answers end at the next products (``answers.py``).
What these are worth follows from the layers behind, which are looked at in the same way, up to the scores
(``worth.py``). Layers are found once for steps of one structure, and looked at once a step, whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.particles import Block
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.feedback import MOST_NUMBERS, Feedback
from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import precise
from lightning_polystep.scoring.takers import Met, Moment, Multiplied, Readout, Taker
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.worth import ByFeedback, ByTakers, Worth
from lightning_polystep.tape import (
    Dense,
    Entries,
    Entry,
    NotOnTapeError,
    Operation,
    Stage,
    Tape,
    compile_program,
    entries_of,
    is_norm,
    product_of,
    products_with,
)

aten = torch.ops.aten

# What layers that are not trained are shifted by, in standard deviations of what they make.
_USUAL_SHIFT = 1.0
# Where mirrors, and how strongly places reach others, are kept among what was learned: no parameter has such a name.
_MIRRORS, _REACHES = "mirrors of", "reaches of"
_SLOPES = "slopes of layers"


class Radii(dict[object, Tensor]):
    """How far a layer is shifted: by product, at each place, (N', places...).

    Args:
        typical: By product, how far a candidate of reach 1 shifts each place.
        reach: How many times as far each unit is shifted, (U,).
    """

    def __init__(self, typical: Mapping[object, Tensor], reach: Tensor) -> None:
        super().__init__(typical)
        self.reach = reach


@dataclass(eq=False)
class Layer:
    """A layer.

    Args:
        answers: How its units answer.
        worth: What that is worth.
    """

    answers: Answers
    worth: Worth

    def look_at(self, tape: Tape, radii: Radii) -> None:
        """Say how far its units are shifted in this step, for whoever asks.

        Args:
            tape: Of the step.
            radii: By how much.
        """
        tape.arrays[self, "radii"] = radii
        tape.arrays.pop(_SLOPES, None)  # what was seen before, as on trial, is out of date

    def slopes(self, moment: Moment) -> list[tuple[Entry, Tensor]]:
        """Return the slope of the loss at the places of each unit, (U, N', P) by product, found once a step.

        Args:
            moment: What it is looked at with.
        """
        found: dict[Layer, list[tuple[Entry, Tensor]]] = moment.tape.arrays.setdefault(_SLOPES, {})
        if self not in found:
            radii = moment.tape.arrays.get((self, "radii"))
            found[self] = self.slopes_at(moment, self._usual(moment.tape) if radii is None else radii)
        return found[self]

    def slopes_at(self, moment: Moment, radii: Radii) -> list[tuple[Entry, Tensor]]:
        """Return the same for shifts of one's own.

        Args:
            moment: What it is looked at with.
            radii: How far its units are shifted.
        """
        worth = self.worth.on_trial(moment, radii)
        return self.answers.slopes(moment.tape, radii, radii.reach, worth.worth(moment))

    def slopes_by_made(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make, each as large as that.

        Args:
            moment: What it is looked at with.
        """
        slopes = self.slopes(moment)
        shapes = {entry.made: moment.tape.values[entry.made].tensor.shape for entry, _ in slopes}
        return {entry.made: each.movedim(1, 0).reshape(shapes[entry.made]) for entry, each in slopes}

    def _usual(self, tape: Tape) -> Radii:
        shifts = dict[object, Tensor]()
        for entry in self.answers.products:
            made = precise(tape.values[entry.made].tensor)
            shifts[entry.key] = (_USUAL_SHIFT * made.std()).expand(len(made), *made.shape[2:])
        return Radii(shifts, made.new_ones(made.shape[1]))


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
                known[key] = Layer(answers, ByTakers(answers, list(self._takers(answers))))
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
        origin = product.made if product.weight is None else product.weight
        places = " by ".join(str(size) for size in tape.values[product.made].tensor.shape[1:])
        memory = self.recording.learned.setdefault(f"{_REACHES} {self._name_of(origin)}, {places}", {})
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
            if not taken or (step.stage == Stage.UNIT and step.number not in answers.norms):
                continue
            product = product_of(tape, operation)
            if len(taken) > 1:
                raise NotOnTapeError("what it passes on meets itself")
            if product is None:
                met.append((taken[0], operation))
            elif taken[0] != product.inputs or program.position(product.inputs, program.sample) != 0:
                raise NotOnTapeError("what it passes on goes into something else than a layer")
            elif product.made in self.scores.made:
                assert product.weight is not None
                yield Readout(product.inputs, product.weight)
            else:
                assert product.weight is not None
                products = products_with(tape, program, product.weight)
                layer = self._behind(products, dict.fromkeys((each.made for each in products), 1))
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
        kinds = dict[tuple[object, torch.Size], list[tuple[int, Meeting, int]]]()
        for sink, operation in met:
            shape, unit = tape.values[sink].tensor.shape, program.position(sink, program.unit)
            meeting = _meeting(operation, sink)
            if meeting is None or unit is None:
                raise NotOnTapeError("what it passes on goes into something else than a layer")
            whole = tape.values[meeting.made].tensor.shape
            axis = unit + len(whole) - len(shape)
            if whole[axis] != shape[unit]:
                raise NotOnTapeError("it is repeated along its units")
            packet = getattr(operation.function, "overloadpacket", None)
            kinds.setdefault((packet, whole), []).append((sink, meeting, axis))
        for each in kinds.values():
            products = [Entry(meeting.made, meeting.made, None, None) for _, meeting, _ in each]
            layer = self._behind(products, {meeting.made: axis for _, meeting, axis in each})
            yield from (Met(sink, *meeting, layer) for sink, meeting, _ in each)

    def _behind(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        """Return a layer behind others.

        Args:
            products: All that begin it.
            units: Which axis of what they make its units are.

        Raises:
            NotOnTapeError: Where it is not known what it does.
        """
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
        return Layer(answers, ByFeedback(answers, scores, whole, feedback, name))


class Meeting(NamedTuple):
    """What becomes of units where they meet what was made elsewhere.

    Args:
        made: What is made of them.
        factor: The value by which they are multiplied; None in a sum.
        sign: -1 where they are taken away.
        norm: By which they are normalised, if they are.
    """

    made: int
    factor: int | None = None
    sign: float = 1.0
    norm: Operation | None = None


def _meeting(operation: Operation, sink: int) -> Meeting | None:
    """Return what an operation makes of units; None where it does more than is known here."""
    packet, made = getattr(operation.function, "overloadpacket", None), operation.outputs[0]
    if made is not None and is_norm(operation):
        return Meeting(made, norm=operation)
    if made is None or operation.kwargs or len(operation.args) != 2 or len(operation.operands) != 2:
        return None
    first, second = operation.operands
    if packet is aten.add:
        return Meeting(made)
    if packet is aten.sub:
        return Meeting(made, None, 1.0 if sink == first else -1.0)
    if packet is aten.mul:
        return Meeting(made, second if sink == first else first)
    return None


def reach_of_units(rows: int, places: Tensor, reach: Tensor, like: Tensor) -> Tensor:
    """Return how many times as far as usual each unit is shifted, (U,).

    Args:
        rows: How many units there are.
        places: Those that are probed, (R,).
        reach: How many times as far these are, (R,).
        like: A tensor of the dtype that is wanted.
    """
    return torch.ones(rows, dtype=like.dtype, device=like.device).index_copy(0, places, reach.to(like))
