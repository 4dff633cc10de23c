"""Score: rows that are multiplied by the signs of their numbers alone, as binary weights, and what a flip does then."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_polystep.tape.entries import Entries
from lightning_polystep.tape.tape import Tape

# Numbers grow and shrink by so many times at the most when it is asked whether their sizes matter.
_GROWN = 4.0


def acts_by_signs(tape: Tape, entries: Entries) -> bool:
    r"""Tell whether only the signs of a parameter's numbers decide what is multiplied, but for a scale of each row.

    With w the numbers and q(w) what is multiplied, for some positive factors f, one for each number:

    .. math:: q(f w) \propto q(w) \ne q(-w) \quad \text{in each row}

    Args:
        tape: Of a step.
        entries: Where the rows of the parameter enter it; biases do not count.

    Example:
        >>> from lightning_polystep.tape import Recorder, compile_program, entries_of
        >>> weight, x = torch.randn(2, 3), torch.rand(5, 3)
        >>> def judged(quantise):
        ...     with torch.no_grad(), Recorder() as recorder:
        ...         loss = torch.nn.functional.linear(x, quantise(weight)).square().mean()
        ...     tape = recorder.tape
        ...     row = tape.leaves[id(weight)]
        ...     entries = entries_of(tape, compile_program(tape, {row: 0}, tape.find(loss)), [row])
        ...     return acts_by_signs(tape, entries)
        >>> judged(torch.sign), judged(lambda weight: weight.clamp(-1, 1))
        (True, False)
    """
    own = _own(tape, entries)
    weights = {each.weight for each in entries.products} - {None}
    if not own or not weights or weights & own.keys():
        return False
    generator = torch.Generator().manual_seed(0)
    grown = {
        index: each * _GROWN ** (2 * torch.rand(each.shape, generator=generator) - 1).to(each)
        for index, each in own.items()
    }
    everyone = _everyone(own)
    before = entries.rows(tape, everyone)
    after, flipped = entries.rows_as_multiplied(tape, everyone, _apart(grown)), opposites(tape, entries)
    return all(
        torch.allclose(_shape(before[index] + after[index]), _shape(before[index]), rtol=1e-4, atol=1e-5)
        and bool((flipped[index] != 0).any())
        for index in weights
        if index is not None
    )


def opposites(tape: Tape, entries: Entries) -> dict[int, Tensor]:
    """Return by how much each number that is multiplied changes when its own parameter's turns its sign, (U, D).

    Args:
        tape: Of a step.
        entries: Where the rows of a parameter enter it that acts by its signs.
    """
    key = (entries.behind, "opposites")
    if key not in tape.arrays:
        own = _own(tape, entries)
        turned = {index: -each for index, each in own.items()}
        tape.arrays[key] = entries.rows_as_multiplied(tape, _everyone(own), _apart(turned))
    found: dict[int, Tensor] = tape.arrays[key]
    return found


def _own(tape: Tape, entries: Entries) -> dict[int, Tensor]:
    """Return the parameters, by value."""
    return {index: tape.values[index].tensor for index, of in entries.multiples.items() if index == of}


def _everyone(own: dict[int, Tensor]) -> Tensor:
    some = next(iter(own.values()))
    return torch.arange(len(some), device=some.device)


def _apart(own: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return parameters as those of one candidate for each row."""
    return {index: each[:, None] for index, each in own.items()}


def _shape(rows: Tensor) -> Tensor:
    """Return rows without their scale."""
    return rows / rows.abs().mean(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
