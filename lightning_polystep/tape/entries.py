"""Score: where the rows of a block enter a step: products of what was recorded with what the parameters became.

Between a parameter and its product may lie whatever works on parameters alone, as a mask, a constraint or a quantiser.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.tape.execute import execute
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.program import Program, Stage, Step
from lightning_polystep.tape.tape import Operation, Ref, Tape

aten = torch.ops.aten

_VIEWS = {aten.view, aten._unsafe_view, aten.reshape}
_TURNS = {aten.t, aten.transpose, aten.permute}
_MULTIPLES = {
    *_VIEWS, *_TURNS, aten.alias, aten.detach, aten.clone, aten.mul, aten.div, aten.neg, aten.add, aten.sub, aten.where,
    aten.masked_fill,
}  # fmt: skip


class Factor(NamedTuple):
    """What each unit's product is multiplied by, or divided by.

    Args:
        value: Of one number, or of one for each unit; None where it is a number of Python's.
        number: That number.
        divides: Whether it is divided by it.
    """

    value: int | None
    number: float
    divides: bool


class Entry(NamedTuple):
    """A product that a block's rows enter.

    Args:
        made: What it makes.
        inputs: What the rows are multiplied with: (N, D), or images.
        weight: The value whose rows they are then; None where only a bias enters.
        bias: Likewise the bias; None where it has none, or one of another block.
        window: Of a convolution stride, padding and dilation; None of a matrix product.
        kernel: Of a convolution the size of a filter.
        factors: By what each unit's product is multiplied before its bias is added.
        depthwise: Whether each unit has one channel of the images for itself.
    """

    made: int
    inputs: int
    weight: int | None
    bias: int | None
    window: tuple[tuple[int, ...], ...] | None = None
    kernel: tuple[int, ...] = ()
    factors: tuple[Factor, ...] = ()
    depthwise: bool = False

    def gain(self, tape: Tape) -> Tensor | float:
        """Return by what each unit's product is multiplied before its bias is added, (U,) or a number.

        Args:
            tape: Of the step.
        """
        gain: Tensor | float = 1.0
        for value, number, divides in self.factors:
            factor = number if value is None else tape.values[value].tensor.flatten()
            gain = gain / factor if divides else gain * factor
        return gain

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for products of the same rows and inputs: a candidate shifts them alike."""
        return self[1:]


class Entries(NamedTuple):
    """How a block's rows enter a step, and what lies behind.

    Args:
        products: All of them.
        before: The operations on parameters alone, in their order.
        behind: The program without these.
        multiples: Of which parameter a value that is multiplied is a multiple, number by number, as behind a mask.
    """

    products: list[Entry]
    before: list[Step]
    behind: Program
    multiples: Mapping[int, int] = MappingProxyType({})

    @property
    def multiplied(self) -> set[int]:
        """The values that the products multiply or add: what the rows are then."""
        return {index for each in self.products for index in (each.weight, each.bias) if index is not None}

    def scales(self, tape: Tape) -> dict[int, tuple[int, Tensor | None]] | None:
        """Return of which parameter each value that products multiply is a multiple, and which, (U, D).

        None in place of the multiples where it is the parameter itself; None where a value is no multiple of one.

        Args:
            tape: Of the step.
        """
        key = (self.behind, "scales")
        if key not in tape.arrays:
            tape.arrays[key] = self._scales(tape)
        scales: dict[int, tuple[int, Tensor | None]] | None = tape.arrays[key]
        return scales

    def _scales(self, tape: Tape) -> dict[int, tuple[int, Tensor | None]] | None:
        found, before = dict[int, tuple[int, Tensor | None]](), set(self.multiples.values())
        for index in self.multiplied:
            if tape.values[index].producer is None:
                found[index] = index, None
            elif index not in self.multiples:
                return None
        if len(found) < len(self.multiplied):
            kinds = {index: tape.values[index].tensor for index in before}
            every = torch.arange(len(next(iter(kinds.values()))), device=next(iter(kinds.values())).device)
            one, none = (
                self.rows_as_multiplied(
                    tape, every, {index: torch.full_like(each, number)[:, None] for index, each in kinds.items()}
                )
                for number in (1.0, 0.0)
            )
            missing = self.multiplied - found.keys()
            found |= {index: (self.multiples[index], one[index] - none[index]) for index in missing}
        return found

    def rows_as_multiplied(self, tape: Tape, rows: Tensor, changed: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return by how much candidates change what the products multiply, (K, D) or (K, 1) by value.

        Args:
            tape: Of the step.
            rows: The unit of each candidate, (K,).
            changed: What the parameters are for them.
        """
        frame = self._frame(tape, rows, changed)
        for step in self.before:
            execute(frame, self.behind.operation(tape, step.number))
        return {i: (frame.values[i] - frame.recorded(i)[0]).flatten(1) for i in sorted(self.multiplied)}

    def rows(self, tape: Tape, rows: Tensor) -> dict[int, Tensor]:
        """Return what the products multiply of some units, (K, D) or (K, 1) by value.

        Args:
            tape: Of the step.
            rows: The units, (K,).
        """
        frame = self._frame(tape, rows, {})
        return {i: frame.recorded(i)[0].flatten(1) for i in sorted(self.multiplied)}

    def _frame(self, tape: Tape, rows: Tensor, changed: Mapping[int, Tensor]) -> Frame:
        everyone = torch.arange(len(rows), device=rows.device)
        return Frame(tape, self.behind, Stage.UNIT, everyone, rows, values=dict(changed))


def entries_of(tape: Tape, program: Program, parameters: Sequence[int | None]) -> Entries | None:
    """Find the products through which a block's parameters reach the loss; None where they do in other ways too.

    Args:
        tape: Of the structure that the program was read off.
        program: The program.
        parameters: The values of the block's parameters; None for one that the step does not use.
    """
    if program.unit is None or program.sample is None:
        return None
    alone = {index for index in parameters if index is not None}  # what depends on parameters alone
    turned = dict[int | None, int]()  # of which parameter a value is nothing but the transpose
    products, before, behind = list[Entry](), list[Step](), list[Step]()
    added = set[int]()  # behind products, where they are what they were in the step
    scaled = dict[int, tuple[int, tuple[Factor, ...]]]()  # of which product it is a multiple, and what of it
    source = {index: index for index in alone}  # of which parameter a value is a multiple
    uses = Counter(index for step in program.steps for index in set(program.operation(tape, step.number).operands))
    for step in program.steps:
        operation = program.operation(tape, step.number)
        own = [index for index in operation.operands if index in alone]
        if not own:
            behind.append(step)
            scaled |= {
                made: each for made, each in _scaled(tape, program, operation, scaled).items() if uses[made] == 1
            }
            continue
        if step.stage != Stage.UNIT:
            return None
        entry = _entry(tape, program, operation, alone)
        if entry is not None:
            products.append(entry._replace(weight=turned.get(entry.weight, entry.weight)))
            if uses[entry.made] == 1:  # else its bias would be worth less than it is
                scaled[entry.made] = len(products) - 1, ()
            behind.append(step)
            continue
        late = [scaled[index] for index in operation.operands if index in scaled]
        of_unit = tape.values[own[0]].tensor.numel() == program.labels.size((program.unit,))
        if len(late) == 1 and of_unit and _is_sum(operation) and products[late[0][0]].bias is None:
            place, factors = late[0]
            products[place] = products[place]._replace(bias=own[0], factors=factors)
            added.add(own[0])
            behind.append(step)
            continue
        made = [index for index in operation.outputs if index is not None]
        changes_only = all(index in alone for index in operation.operands if index in program.home)
        if not changes_only or any(program.position(index, program.sample) is not None for index in made):
            return None
        source |= _multiples(tape, program, operation, source)
        alone.update(made)
        before.append(step)
        if operation.function is aten.t.default and own[0] in parameters:
            turned[made[0]] = own[0]
    home = {index: stage for index, stage in program.home.items() if index not in added}
    return Entries(products, before, replace(program, steps=behind, home=home), source) if products else None


def _multiples(tape: Tape, program: Program, operation: Operation, known: Mapping[int, int]) -> dict[int, int]:
    """Return what an operation makes, if each number is a multiple of one of a parameter's, and a constant."""
    packet = getattr(operation.function, "overloadpacket", None)
    changed, made = [index for index in operation.operands if index in program.home], operation.outputs[0]
    if packet not in _MULTIPLES or made is None or len(changed) != 1 or changed[0] not in known:
        return {}
    before, after = tape.values[changed[0]].tensor, tape.values[made].tensor
    upside_down = packet is aten.div and (operation.operands[0] != changed[0] or operation.kwargs)
    # The numbers of a row stay in their order.
    in_order = packet not in _TURNS or before.ndim <= 2
    in_order = in_order and (packet not in _VIEWS or program.position(changed[0], program.unit) == 0)
    return {made: known[changed[0]]} if before.numel() == after.numel() and in_order and not upside_down else {}


def _is_sum(operation: Operation) -> bool:
    packet = getattr(operation.function, "overloadpacket", None)
    return packet is aten.add and len(operation.operands) == 2 and operation.kwargs.get("alpha", 1) == 1


def _scaled(
    tape: Tape, program: Program, operation: Operation, known: Mapping[int, tuple[int, tuple[Factor, ...]]]
) -> dict[int, tuple[int, tuple[Factor, ...]]]:
    """Return what an operation makes if that is a product, or one times a constant or times a factor of each unit."""
    packet, made = getattr(operation.function, "overloadpacket", None), operation.outputs[0]
    if packet in _VIEWS and made is not None and operation.operands[0] in known:
        return {made: known[operation.operands[0]]}
    if packet not in {aten.mul, aten.div} or made is None or operation.kwargs or program.unit is None:
        return {}
    of = [each.index for each in operation.args if isinstance(each, Ref) and each.index in known]
    others = [each for each in operation.args if not (isinstance(each, Ref) and each.index in known)]
    divides = packet is aten.div
    if len(of) != 1 or len(others) != 1 or (divides and others[0] is operation.args[0]):
        return {}
    (by,) = others
    if isinstance(by, Ref):
        numbers, has_units = tape.values[by.index].tensor.numel(), program.position(by.index, program.unit) is not None
        alike = numbers == (program.labels.size((program.unit,)) if has_units else 1)
        if by.index in program.home or not alike:
            return {}
    elif not isinstance(by, int | float):
        return {}
    factor = Factor(by.index, 1.0, divides) if isinstance(by, Ref) else Factor(None, float(by), divides)
    place, factors = known[of[0]]
    return {made: (place, (*factors, factor))}


def products_of(tape: Tape, parameters: Sequence[int | None]) -> list[Entry] | None:
    """Find the matrix products that multiply parameters as they are; None where anything else reads them.

    Other than with :func:`entries_of`, what they are multiplied with may depend on these parameters.

    Args:
        tape: Of a step.
        parameters: The values of a block's parameters; None for one that the step does not use.
    """
    own = {index for index in parameters if index is not None}
    turned, products = dict[int, int](), list[Entry]()
    seen_as = dict[int, int]()  # which product a value is a view of
    for operation in tape.operations:
        packet = getattr(operation.function, "overloadpacket", None)
        read = [index for index in operation.operands if index in own or index in turned]
        made = operation.outputs[0] if operation.outputs else None
        if not read or made is None:
            if packet in _VIEWS and operation.operands[0] in seen_as and made is not None:
                seen_as[made] = seen_as[operation.operands[0]]
            continue
        if _is_sum(operation) and operation.operands[0] in seen_as:  # so a Linear of strided inputs adds its bias
            place, width = seen_as[operation.operands[0]], tape.values[operation.operands[0]].tensor.shape[-1]
            product = products[place]
            units = tape.values[product.made].tensor.shape[1]
            if product.bias is not None or not tape.values[read[0]].tensor.shape == (units,) == (width,):
                return None
            products[place] = product._replace(bias=read[0])
            continue
        if packet is aten.t and read[0] in own:
            turned[made] = read[0]
            continue
        *added, inputs, weight = operation.operands if packet in {aten.mm, aten.addmm} else (None, None)
        bias = added[0] if added and added[0] in own else None
        expected = [*([] if bias is None else [bias]), *([weight] if weight in turned else [])]
        if operation.kwargs or inputs is None or read != expected or tape.values[made].tensor.ndim != 2:
            return None
        seen_as[made] = len(products)
        products.append(Entry(made, inputs, None if weight is None else turned.get(weight), bias))
    return products or None


def product_of(tape: Tape, operation: Operation) -> Entry | None:
    """Return an operation as a product of inputs with rows of weights; None where it is none.

    Args:
        tape: Of a step.
        operation: The operation. Weights of a matrix product are its second factor, (D, U).
    """
    packet = getattr(operation.function, "overloadpacket", None)
    made = operation.outputs[0] if operation.outputs else None
    if packet not in {aten.mm, aten.addmm, aten.convolution} or made is None or operation.kwargs:
        return None
    if packet is not aten.convolution:
        *added, inputs, weight = operation.operands
        return Entry(made, inputs, weight, added[0] if added else None)
    inputs, weight, *added = operation.operands
    stride, padding, dilation, transposed, _, groups = operation.args[3:9]
    filters, images = tape.values[weight].tensor, tape.values[inputs].tensor
    depthwise = 1 < groups == len(filters) == images.shape[1] and images.ndim == len(stride) + 2
    if transposed or len(stride) > 2 or not (groups == 1 or depthwise):
        return None
    window, kernel = (tuple(stride), tuple(padding), tuple(dilation)), tuple(filters.shape[2:])
    return Entry(made, inputs, weight, added[0] if added else None, window, kernel, depthwise=depthwise)


def _entry(tape: Tape, program: Program, operation: Operation, alone: set[int]) -> Entry | None:
    """Return an operation as a product that rows enter; None where it is none."""
    product = product_of(tape, operation)
    if product is None:
        return None
    made, inputs, weight, bias, *_ = product
    of_others = any(index in program.home and index not in alone for index in (weight, bias, inputs))
    own_channel = 1 if product.depthwise else None
    of_rows = program.position(inputs, program.unit) == own_channel and program.axes[made][1] == (program.unit,)
    if inputs in alone or of_others or not of_rows or program.position(inputs, program.sample) != 0:
        return None
    return product._replace(weight=weight if weight in alone else None, bias=bias if bias in alone else None)


def products_with(tape: Tape, program: Program, weight: int) -> list[Entry]:
    """Return all products of a step that multiply with a value, in their order.

    Args:
        tape: Of a step.
        program: Knows which operations are equal.
        weight: The value.
    """
    repeated = {number for number, _ in program.merged}
    each = (program.operation(tape, number) for number in range(len(tape.operations)) if number not in repeated)
    found = (product_of(tape, operation) for operation in each)
    return [product for product in found if product is not None and product.weight == weight]


def added_by_rows(tape: Tape, entry: Entry, rows: Tensor) -> Tensor:
    """Return what rows make of the inputs at each place, (V, N, P): where each has a channel of its own, typically.

    Args:
        tape: Of the step.
        entry: The product.
        rows: Shape (V, D).
    """
    inputs = tape.values[entry.inputs].tensor.to(rows)
    if entry.window is None:
        return (rows @ inputs.T)[:, :, None]
    stride, padding, dilation = entry.window
    if entry.depthwise:  # on average over the channels, each of which has a row of its own
        inputs = inputs.square().mean(1, keepdim=True).sqrt()
    filters = rows.reshape(len(rows), inputs.shape[1], *entry.kernel)
    return _convolution(entry)(inputs, filters, None, stride, padding, dilation).transpose(0, 1).flatten(2)


def summed_over_places(tape: Tape, entry: Entry, slopes: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the sum of the inputs at all places, weighted by what is said of these for each row, (R, D).

    For a convolution this is one of the images with the weights as filters, whose stride is the dilation and whose
    dilation is the stride of the product: a tenth of the time that unfolding the images takes.

    Args:
        tape: Of the step.
        entry: The product.
        slopes: Shape (R, N, P).
        rows: Which rows these are; by default all.
    """
    inputs = tape.values[entry.inputs].tensor.to(slopes)
    if entry.window is None:
        return slopes[:, :, 0] @ inputs
    stride, padding, dilation = entry.window
    places = slopes.reshape(*slopes.shape[:2], *tape.values[entry.made].tensor.shape[2:])
    images, groups = inputs.transpose(0, 1), 1
    if entry.depthwise:  # the channels of all samples side by side, those of a row being a group
        images, groups = images if rows is None else images[rows], len(places)
        images = images.reshape(1, -1, *images.shape[2:])
    found = _convolution(entry)(images, places, None, dilation, padding, stride, groups)
    for axis, size in enumerate(entry.kernel, 2):  # a stride may leave the last pixels of an image out
        found = found.narrow(axis, 0, size)
    return found.transpose(0, 1).flatten(1)


def _convolution(entry: Entry) -> Callable[..., Tensor]:
    return functional.conv1d if len(entry.kernel) == 1 else functional.conv2d
