"""Score: which operations take a parameter in by itself, and what lies behind each of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.particles import Block
from lightning_polystep.scoring.layer import Layer
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.tape import NotOnTapeError, Operation, has_way_back, is_norm, moves, product_of

_LAYER_NORM = torch.ops.aten.native_layer_norm


class Use(NamedTuple):
    """An operation that takes a parameter in, or a part of it.

    Args:
        parameter: Its place in the block.
        places: Which number of the parameter each of the operand's numbers is, as large as that.
        operation: The operation.
        operand: Which of its operands it is.
        layer: What lies behind.
        is_bias: Whether it is the bias of a product.
    """

    parameter: int
    places: Tensor
    operation: Operation
    operand: int
    layer: Layer
    is_bias: bool


def uses_of(layers: Layers, block: Block) -> list[Use]:
    """Find the operations that take a block's parameters in.

    Args:
        layers: Of the step.
        block: The parameters.

    Raises:
        NotOnTapeError: Where some takes them in of which nothing is known.
    """
    finder = _Uses(layers)
    uses = list[Use]()
    for place, leaf in enumerate(layers.recording.leaves_of(block)):
        if leaf is not None:
            uses += finder.of_parameter(place, leaf)
    if not uses:
        raise NotOnTapeError("the step does not use it")
    return uses


class _Uses:
    """Finds what takes values in; layers tell what lies behind."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._reading = layers.reading
        self._recording = layers.recording

    def of_parameter(self, parameter: int, leaf: int) -> list[Use]:
        """Return the operations that take a parameter in, but for moves of it.

        Args:
            parameter: Its place in the block.
            leaf: Its value.

        Raises:
            NotOnTapeError: Where something takes it in of which nothing is known.
        """
        tape = self._recording.taken()
        value = tape.values[leaf].tensor
        uses = list[Use]()
        kinds = dict[object, list[tuple[Tensor, Operation, int]]]()
        moved = {leaf: torch.arange(value.numel()).reshape(value.shape)}
        for operation in self._reading.operations():
            places = [place for place, index in enumerate(operation.operands) if index in moved]
            put = moves(tape, operation, moved[operation.operands[0]]) if places == [0] else None
            if put is not None and len(operation.operands) == 1:
                moved.update(put)
                continue
            product = product_of(tape, operation)
            for place in places:
                numbers = moved[operation.operands[place]]
                if product is not None and product.weight is not None and operation.operands[place] == product.bias:
                    layer = self._layers.of_products(self._reading.alike(product))
                    uses.append(Use(parameter, numbers, operation, place, layer, True))
                elif product is not None or not has_way_back(operation):
                    raise NotOnTapeError(f"{operation.function} takes it in, of which nothing is known")
                else:
                    kind = (*self._reading.kind(operation), place)
                    kinds.setdefault(kind, []).append((numbers, operation, place))
        for each in kinds.values():
            uses += self._of_kind(parameter, each)
        return uses

    def _of_kind(self, parameter: int, taken: list[tuple[Tensor, Operation, int]]) -> list[Use]:
        """Return operations of one kind, as at several steps of time, each with what lies behind it."""
        made_by = {op.outputs[0]: (op, numbers) for numbers, op, _ in taken if op.outputs[0] is not None}
        try:
            layers = self._layers.behind_kind({made: self._axes(made, *of_made) for made, of_made in made_by.items()})
        except NotOnTapeError as error:
            raise NotOnTapeError("it is not known what lies behind what takes it in") from error
        return [
            Use(parameter, numbers, operation, place, layers[operation.outputs[0]], False)
            for numbers, operation, place in taken
            if operation.outputs[0] is not None
        ]

    def _axes(self, made: int, operation: Operation, numbers: Tensor) -> list[int]:
        """Return the axes of what an operation makes that may be those of units, the likeliest first."""
        whole = self._recording.taken().values[made].tensor.ndim
        if is_norm(operation):
            return [whole - 1 if getattr(operation.function, "overloadpacket", None) is _LAYER_NORM else 1]
        of_parameter = [whole - numbers.ndim + at for at, size in enumerate(numbers.shape) if size > 1]
        return list(dict.fromkeys([*of_parameter[::-1], whole - 1, min(1, whole - 1)]))
