"""Score: the layers of a step, and what a change of what they make is worth to the loss, from the last to the first.

A layer is all products of a step with the same weights. Its units' answers end at the next products (``answers.py``).
What these are worth follows from the layers behind, which are looked at in the same way, up to the scores
(``worth.py``). Layers are found once for steps of one structure, and looked at once a step, whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    is_norm,
    moves,
    operations_towards,
    product_of,
    products_of,
    products_with,
)

# Where mirrors, and how strongly places reach others, are kept among what was learned: no parameter has such a name.
_MIRRORS, _REACHES = "mirrors of", "reaches of"
# Operations behind layers that are read, all layers of a step together.
_MOST_READ = 100_000
_LAYER_NORM = torch.ops.aten.native_layer_norm


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
                layer = Answering(answers, ByTakers(answers, takers, list(dict.fromkeys(map(str, left_out)))))
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
        tape, product = self.recording.taken(), entries.products[0]
        name = f"value {product.made}"
        if product.weight is not None:
            alone = len(products_with(tape, entries.behind, product.weight)) <= len(entries.products)
            name = self._name_of(product.weight) + ("" if alone else f" for {name}")
        places = " by ".join(str(size) for size in tape.values[product.made].tensor.shape[1:])
        memory = self.recording.learned.setdefault(f"{_REACHES} {name}, {places}", {})
        return Answers.of(tape, entries, memory, evenly=self.recording.divides_batches)

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
            made, product = operation.outputs[0], product_of(tape, operation)
            if product is not None:
                try:
                    takers.append(self._of_product(answers, product, taken))
                except NotOnTapeError as error:
                    left_out.append(error)
            elif made is None or not has_way_back(operation):
                left_out.append(NotOnTapeError(f"{operation.function} takes it in, of which nothing is known"))
            else:
                kind = getattr(operation.function, "overloadpacket", None), tape.values[made].tensor.shape
                kinds.setdefault(kind, {}).setdefault(made, []).extend(
                    (sink, operation) for sink in dict.fromkeys(taken)
                )
        for each in kinds.values():
            try:
                takers += self._met(answers, each)
            except NotOnTapeError as error:
                left_out.append(error)
        return takers, left_out

    def _of_product(self, answers: Answers, product: Entry, taken: list[int]) -> Taker:
        """Return a product that takes in what units pass on: of the readout, or of a later layer."""
        program = answers.program
        usual = taken == [product.inputs] and not product.depthwise
        if not usual or product.weight is None or program.position(taken[0], program.sample) != 0:
            raise NotOnTapeError("a product takes it in otherwise than as the inputs of a layer")
        if product.made in self.scores.made:
            return Readout(product.inputs, product.weight)
        return Multiplied(product.inputs, product, self.of_products(self._alike(product)), self._mirror(product))

    def _met(self, answers: Answers, each: Mapping[int, Sequence[tuple[int, Operation]]]) -> list[Taker]:
        """Return operations of one kind, as at several steps of time, by what they make of which sinks."""
        units = {made: self._unit_of(answers.program, made, *taken[0]) for made, taken in each.items()}
        made_by = {made: Entry(made, made, None, None) for made in each}
        if self.is_recurrent(list(made_by.values())):  # each step of time is a layer of its own
            layers = {made: self._behind([entry], {made: units[made]}) for made, entry in made_by.items()}
        else:
            layers = dict.fromkeys(each, self._behind(list(made_by.values()), units))
        return [Met(sink, operation, layers[made]) for made, taken in each.items() for sink, operation in taken]

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
        if len(products) > 1 and self.is_recurrent(products):
            # Each step of time is a layer of its own; the last ones first, because those before lead there.
            return Together([self.of_products([each]) for each in reversed(products)])
        return self._behind(products, dict.fromkeys((each.made for each in products), 1))

    def taken_in(self, leaf: int) -> list[tuple[Tensor, Operation, int, Layer, bool]]:
        """Return the operations that take a parameter in, but for moves of it.

        Args:
            leaf: The value of the parameter.

        Returns:
            For each of them: which number of the parameter each of the operand's is; the operation; which operand it
            is; what lies behind; and whether it is the bias of a product.

        Raises:
            NotOnTapeError: Where something takes it in of which nothing is known.
        """
        tape, found = self.recording.taken(), list[tuple[Tensor, Operation, int, Layer, bool]]()
        value, kinds = tape.values[leaf].tensor, dict[object, list[tuple[Tensor, Operation, int]]]()
        moved = {leaf: torch.arange(value.numel()).reshape(value.shape)}
        for operation in self._operations():
            places = [place for place, index in enumerate(operation.operands) if index in moved]
            put = moves(tape, operation, moved[operation.operands[0]]) if places == [0] else None
            if put is not None and len(operation.operands) == 1:
                moved.update(put)
                continue
            product = product_of(tape, operation)
            for place in places:
                numbers = moved[operation.operands[place]]
                if product is not None and product.weight is not None and operation.operands[place] == product.bias:
                    found.append((numbers, operation, place, self.of_products(self._alike(product)), True))
                elif product is not None or not has_way_back(operation):
                    raise NotOnTapeError(f"{operation.function} takes it in, of which nothing is known")
                else:
                    made = operation.outputs[0]
                    assert made is not None
                    kind = getattr(operation.function, "overloadpacket", None), tape.values[made].tensor.shape, place
                    kinds.setdefault(kind, []).append((numbers, operation, place))
        for each in kinds.values():
            made_by = {op.outputs[0]: (op, numbers) for numbers, op, _ in each if op.outputs[0] is not None}
            layers = self._of_made({made: self._axes(made, *of_made) for made, of_made in made_by.items()})
            for numbers, operation, place in each:
                made = operation.outputs[0]
                assert made is not None
                found.append((numbers, operation, place, layers[made], False))
        return found

    def _alike(self, product: Entry) -> list[Entry]:
        """Return the products that make one layer with a product: all with its weights, or itself of a recurrence."""
        tape = self.recording.taken()
        each = (product_of(tape, operation) for operation in self._operations())
        same = [one for one in each if one is not None and one.weight == product.weight]
        return [product] if self.is_recurrent(same) else same

    def _axes(self, made: int, operation: Operation, numbers: Tensor) -> list[int]:
        """Return the axes of what an operation makes that may be those of units, the likeliest first."""
        whole = self.recording.taken().values[made].tensor.ndim
        if is_norm(operation):
            return [whole - 1 if getattr(operation.function, "overloadpacket", None) is _LAYER_NORM else 1]
        of_parameter = [whole - numbers.ndim + at for at, size in enumerate(numbers.shape) if size > 1]
        return list(dict.fromkeys([*of_parameter[::-1], whole - 1, min(1, whole - 1)]))

    def _of_made(self, axes: Mapping[int, list[int]]) -> dict[int, Layer]:
        """Return what lies behind values, each by itself where they lead to one another.

        Args:
            axes: By value, which of its axes may be that of units.
        """
        entries = {made: Entry(made, made, None, None) for made in axes}
        if self.is_recurrent(list(entries.values())):
            return {made: self._of_made({made: each})[made] for made, each in axes.items()}
        for turn in range(min(map(len, axes.values()))):
            with suppress(NotOnTapeError):
                units = {made: each[turn] for made, each in axes.items()}
                return dict.fromkeys(axes, self._behind(list(entries.values()), units))
        raise NotOnTapeError("it is not known what lies behind what takes it in")

    def is_recurrent(self, products: list[Entry]) -> bool:
        """Tell whether some products lead to others.

        Args:
            products: All with the same weights.
        """
        made = {each.made for each in products}
        reached = set(made)
        for operation in self._operations() if len(products) > 1 else []:
            if reached.isdisjoint(operation.operands):
                continue
            if not made.isdisjoint(operation.outputs):
                return True
            reached.update(index for index in operation.outputs if index is not None)
        return False

    def _parts(self, made: int) -> list[Part]:
        """Return the parts into which what a product makes is cut before anything else is done with it, if it is.

        Raises:
            NotOnTapeError: Where it is not known what a part does.
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
        return self._once((frozenset(units.items()), "behind"), lambda: self._found_behind(products, units))

    def _found_behind(self, products: list[Entry], units: Mapping[int, int]) -> Layer:
        entries = None
        with suppress(NotOnTapeError):
            entries = self._entries_behind(products, units)
            return self.layer(entries)
        with suppress(NotOnTapeError):
            parts = [part for each in products for part in self._parts(each.made)]
            if parts:
                return Parted(products, parts)
        if entries is None:
            raise NotOnTapeError("a layer behind it goes into itself, or mixes samples")
        return self.layer(entries, partly=True)

    def _entries_behind(self, products: list[Entry], units: Mapping[int, int]) -> Entries:
        tape, loss = self.recording.taken(), self.recording.loss
        assert loss is not None
        # What lies behind each step of time is read by itself, which takes a minute for eighty steps of an LSTM.
        known, key = self.recording.layers, (tape.structure(), "operations that were read")
        if known.setdefault(key, 0) > _MOST_READ:
            raise NotOnTapeError("it has too many steps of time to be looked at one by one")
        program = compile_program(tape, units, loss, as_recorded=True)
        known[key] += len(program.steps)
        inside = {made for step in program.steps for made in program.operation(tape, step.number).outputs}
        if program.unit is None or program.sample is None or not inside.isdisjoint(units):
            raise NotOnTapeError("a layer behind it goes into itself, or mixes samples")
        return Entries(products, [], program)

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
