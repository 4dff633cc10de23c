"""Score: the places of a unit in a sample, positions or tokens or steps of time, and which of them reach which.

A value is laid out as (I, N, U, places...): instances, samples, units, and one axis for each label that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.program import Program

# Share of pairs of places that do not reach each other where that is no chance: two steps of time have a fourth.
_LEAST_APART = 0.125
_LETTERS, _OTHERS = "abcdefgh", "ijklmnop"


class Layout(NamedTuple):
    """How a value is laid out.

    Args:
        shape: Of the value.
        sizes: Of its labels, one by one.
        order: These with the sample first, then the unit, then places, then what has no label.
        labels: Of the axes of places.
    """

    shape: tuple[int, ...]
    sizes: list[int]
    order: list[int]
    labels: list[int | None]

    @classmethod
    def of(cls, program: Program, index: int, shape: Sequence[int]) -> Layout | None:
        """Return the layout of a value; None where it does not hold samples and units.

        Args:
            program: Knows the labels of its axes.
            index: The value.
            shape: Its shape.
        """
        slots = program.slots(index)
        if program.unit is None or slots.count(program.sample) != 1 or slots.count(program.unit) != 1:
            return None
        sizes = [1 if label is None else program.labels.size((label,)) for label in slots]
        first = [slots.index(program.sample), slots.index(program.unit)]
        places = [at for at in range(len(slots)) if at not in first and sizes[at] > 1]
        single = [at for at in range(len(slots)) if at not in first and sizes[at] == 1]
        return cls(tuple(shape), sizes, [*first, *places, *single], [slots[at] for at in places])

    @property
    def laid_out(self) -> tuple[int, ...]:
        """The shape of one instance as it is laid out: (N, U, places...)."""
        return tuple(self.sizes[at] for at in self.order[: 2 + len(self.labels)])

    @property
    def places(self) -> list[int]:
        """How many places each axis of them has."""
        return [self.sizes[at] for at in self.order[2 : 2 + len(self.labels)]]

    def apart(self, value: Tensor) -> Tensor:
        """Return a value as it is laid out.

        Args:
            value: Shape (I, *shape).

        Returns:
            Shape (I, N, U, places...).
        """
        cut = value.reshape(len(value), *self.sizes).permute(0, *(at + 1 for at in self.order))
        return cut.reshape(len(value), *self.laid_out)

    def back(self, apart: Tensor) -> Tensor:
        """Return a value from what :meth:`apart` made of it."""
        inverse = [self.order.index(at) for at in range(len(self.order))]
        cut = apart.reshape(len(apart), *(self.sizes[at] for at in self.order))
        return cut.permute(0, *(at + 1 for at in inverse)).reshape(len(apart), *self.shape)


class Relation(NamedTuple):
    """Which places of a value reach which places of a later one, axis by axis.

    Args:
        matrices: For each axis of the first, and in it for each of the later one, how strongly: (places, later places).
        sizes: How many places each axis of the first has.
        later: How many each axis of the later one has.
    """

    matrices: list[list[Tensor]]
    sizes: list[int]
    later: list[int]

    @classmethod
    def seen(cls, sizes: Sequence[int], later: Sequence[int], touched: Mapping[tuple[int, int], Tensor]) -> Relation:
        """Tell from what changes when one place of one axis after the other is touched.

        Args:
            sizes: How many places each axis of the first value has.
            later: How many each axis of the later one has.
            touched: How much later places change with a place of an axis, by axis and place: shape ``later``.
        """
        matrices = []
        for axis, size in enumerate(sizes):
            changed = torch.stack([touched[axis, place] for place in range(size)])
            others = [[1 + at for at in range(len(later)) if at != own] for own in range(len(later))]
            strengths = [changed.mean(gone) if gone else changed for gone in others]
            matrices.append([each if _tells_apart(each) else torch.ones_like(each) for each in strengths])
        return cls(matrices, list(sizes), list(later))

    def to_first(self, later: Tensor) -> Tensor:
        """Add up for each place what belongs to the later places that it reaches.

        Args:
            later: Shape (..., later places).

        Returns:
            Shape (..., places).
        """
        return _contracted(later, len(self.later), self.sizes, lambda own, wanted: self.matrices[wanted][own].T)

    def to_later(self, first: Tensor) -> Tensor:
        """Add up for each later place what belongs to the places that reach it.

        Args:
            first: Shape (..., places).

        Returns:
            Shape (..., later places).
        """
        return _contracted(first, len(self.sizes), self.later, lambda own, wanted: self.matrices[own][wanted])


def _contracted(given: Tensor, rank: int, sizes: Sequence[int], matrix: Callable[[int, int], Tensor]) -> Tensor:
    """Multiply the last axes by matrices.

    Args:
        given: Its last axes are contracted.
        rank: How many these are.
        sizes: Of the axes that are wanted.
        matrix: Between a given axis and a wanted one, (given places, wanted places).
    """
    axes = [(at, to) for to in range(len(sizes)) for at in range(rank)]
    related = {each: found for each in axes if not _is_even(found := matrix(*each).to(given))}
    owns, wanteds = sorted({at for at, _ in related}), sorted({to for _, to in related})
    lost = [at - rank for at in range(rank) if at not in owns]
    kept = given.sum(lost) if lost else given
    if len(related) == len(owns) == len(wanteds):  # as of positions: one axis after the other
        for (at, _), one in related.items():
            place = owns.index(at) - len(owns)
            if _is_diagonal(one):  # as of all that works place by place: nothing has to be copied
                kept = kept * one.diagonal().reshape(-1, *[1] * (-1 - place))
            else:
                kept = (kept.movedim(place, -1) @ one).movedim(-1, place)
        order = [owns.index(at) - len(owns) for _, at in sorted((to, at) for at, to in related)]
        kept = kept.permute(*range(kept.ndim - len(owns)), *(kept.ndim + at for at in order))
    else:
        own, wanted = "".join(_LETTERS[at] for at in owns), "".join(_OTHERS[to] for to in wanteds)
        terms = [f"...{own}", *(_LETTERS[at] + _OTHERS[to] for at, to in related)]
        kept = torch.einsum(f"{','.join(terms)}->...{wanted}", kept, *related.values())
    for to in range(len(sizes)):  # those that all reach alike
        if to not in wanteds:
            kept = kept.unsqueeze(given.ndim - rank + to)
    return kept.expand(*given.shape[: given.ndim - rank], *sizes)


def _tells_apart(strengths: Tensor) -> bool:
    """Tell whether places reach some later places and not others, by how strongly they do, (places, later places).

    How strongly all reach all others, as rows of an image reach its columns, is chance, and so it is where a few of
    them seem not to, such as the corners of images in which nothing ever fires.
    """
    reaches = strengths != 0
    seen = reaches[reaches.any(1)][:, reaches.any(0)]
    return seen.numel() == 0 or float((~seen).float().mean()) >= _LEAST_APART


def _is_diagonal(matrix: Tensor) -> bool:
    """Tell whether each place reaches the one like it, and no other."""
    return matrix.shape[0] == matrix.shape[1] and bool((matrix.diagonal().diag() == matrix).all())


def _is_even(matrix: Tensor) -> bool:
    """Tell whether all places reach all others alike."""
    return bool((matrix == matrix.max()).all())
