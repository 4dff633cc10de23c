"""Observe: what the rows of a parameter are multiplied with, as the tape shows it, whoever wrote the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.tape.entries import Entry, product_of
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten

# Places of images that are looked at, about.
_MOST_PLACES = 8192
Weight = TypeVar("Weight", bound=Tensor)


class Multiplied(NamedTuple, Generic[Weight]):
    """A product of a parameter's rows.

    Args:
        parameter: The parameter.
        inputs: What it is multiplied with, as the product takes it.
        rows: Returns that as X, (N, D): of a convolution about 8,192 patches at the most.
    """

    parameter: Weight
    inputs: Tensor
    rows: Callable[[], Tensor]


def factors_of(tape: Tape, parameters: Sequence[Weight]) -> Iterator[Multiplied[Weight]]:
    r"""Yield every product :math:`X W^T` on the tape whose W is made of one of some parameters, number by number.

    Between a parameter and W may lie a mask, a constraint, a quantiser: whatever has a number for each of its numbers.

    Args:
        tape: Of a step.
        parameters: Matrices, (rows, D), or filters of convolutions, (rows, channels, ...).

    Yields:
        The products, in the order in which the step made them.

    Example:
        >>> from lightning_polystep.tape import Recorder
        >>> weight, mask, x = torch.ones(2, 3), torch.eye(2, 3), torch.rand(5, 3)
        >>> with torch.no_grad(), Recorder() as recorder:
        ...     out = torch.nn.functional.linear(x, weight * mask)
        >>> [tuple(each.rows().shape) for each in factors_of(recorder.tape, [weight])]
        [(5, 3)]
    """
    followed = {tape.leaves[id(each)]: each for each in parameters if id(each) in tape.leaves}
    turned: dict[int, Weight] = {}
    for operation in tape.operations if followed else ():
        own = [followed[index] for index in operation.operands if index in followed]
        if own and all(each is own[0] for each in own):
            for made in _made_of(tape, operation, own[0]):
                (turned if operation.function is aten.t.default else followed)[made] = own[0]
        product = product_of(tape, operation)
        if product is None or product.weight is None:
            continue
        parameter = (turned if product.window is None else followed).get(product.weight)
        if parameter is not None and not product.depthwise:
            inputs = tape.values[product.inputs].tensor
            yield Multiplied(parameter, inputs, partial(_rows, product, inputs))


def _made_of(tape: Tape, operation: Operation, parameter: Tensor) -> Iterator[int]:
    """Yield what an operation makes that has a number for each of a parameter's."""
    for made in operation.outputs:
        if made is not None:
            shape = tape.values[made].tensor.shape
            if shape == (parameter.shape[::-1] if operation.function is aten.t.default else parameter.shape):
                yield made


def _rows(product: Entry, inputs: Tensor) -> Tensor:
    """Return what rows are multiplied with, (N, D)."""
    if product.window is None:
        return inputs.detach()
    images = inputs.detach() if inputs.dtype in {torch.float32, torch.float64} else inputs.detach().float()
    images = images[:: max(1, len(images) * math.prod(images.shape[2:]) // _MOST_PLACES)]
    stride, padding, dilation = product.window
    kernel = product.kernel
    if len(kernel) == 1:  # there is no unfolding of sequences
        images, kernel, stride, dilation = images[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
        padding = (0, *padding)
    columns = functional.unfold(images, kernel, dilation, padding, stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
