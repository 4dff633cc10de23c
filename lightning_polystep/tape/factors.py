"""Observe: what the rows of a parameter are multiplied with, as the tape shows it, whoever wrote the layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lightning_polystep.tape.tape import Tape

aten = torch.ops.aten

Matrix = TypeVar("Matrix", bound=Tensor)


def factors_of(tape: Tape, parameters: Sequence[Matrix]) -> Iterator[tuple[Matrix, Tensor]]:
    r"""Yield the X of every product :math:`X W^T` on the tape whose W is one of some parameters.

    Args:
        tape: Of a step.
        parameters: Matrices W, (rows, D).

    Yields:
        The parameter and X, (N, D), in the order in which the step multiplied them.

    Example:
        >>> from lightning_polystep.tape import Recorder
        >>> weight, x = torch.ones(2, 3), torch.rand(5, 3)
        >>> with torch.no_grad(), Recorder() as recorder:
        ...     out = torch.nn.functional.linear(x, weight)
        >>> [tuple(inputs.shape) for _, inputs in factors_of(recorder.tape, [weight])]
        [(5, 3)]
    """
    held = {tape.leaves[id(each)]: each for each in parameters if id(each) in tape.leaves}
    turned: dict[int, Matrix] = {}
    for operation in tape.operations if held else ():
        if operation.function is aten.t.default and operation.operands[0] in held:
            made = operation.outputs[0]
            assert made is not None
            turned[made] = held[operation.operands[0]]
        elif getattr(operation.function, "overloadpacket", None) in {aten.mm, aten.addmm}:
            left, right = operation.operands[-2:]
            if right in turned:
                yield turned[right], tape.values[left].tensor
