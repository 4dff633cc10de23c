"""Which axis of a value means what, found by following axes through the operations of a tape.

An axis is a tuple of *labels*, outermost first: ``(T * N, D)`` has the axes ``((time, sample), (feature,))``. Two axes
that an operation pairs element by element get the same labels; a view that cuts a merged axis apart splits labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Axis = tuple[int, ...]


class Labels:
    """Labels of axes, their sizes, and which of them turned out to be the same or to consist of others.

    Example:
        >>> labels = Labels()
        >>> merged, time, sample = labels.fresh(6), labels.fresh(2), labels.fresh(3)
        >>> labels.unify(merged, (*time, *sample)), labels.resolve(merged) == (*time, *sample)
        (True, True)
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._parts: dict[int, Axis] = {}

    def fresh(self, size: int) -> Axis:
        """Return an axis of its own; one of a single place has no label."""
        if size == 1:
            return ()
        self._sizes.append(size)
        return (len(self._sizes) - 1,)

    def size(self, axis: Axis) -> int:
        """Return how many places an axis has."""
        return math.prod(self._sizes[label] for label in axis)

    def resized(self, label: int, size: int) -> Labels:
        """Return the same labels, one of them with another number of places."""
        other = Labels()
        other._sizes, other._parts = list(self._sizes), self._parts
        other._sizes[label] = size
        return other

    def resolve(self, axis: Axis) -> Axis:
        """Return an axis in the labels that are known by now."""
        while any(label in self._parts for label in axis):
            axis = tuple(part for label in axis for part in self._parts.get(label, (label,)))
        return axis

    def unify(self, one: Axis, other: Axis) -> bool:
        """Take two axes for the same, place by place.

        Returns:
            Whether that is possible: False where their parts do not fit, and nothing is known of them afterwards.
        """
        left, right = list(self.resolve(one)), list(self.resolve(other))
        while left and right:
            a, b = left.pop(0), right.pop(0)
            if a == b:
                continue
            size_a, size_b = self._sizes[a], self._sizes[b]
            if size_a > size_b:
                (a, size_a, left), (b, size_b, right) = (b, size_b, right), (a, size_a, left)
            if size_b % size_a:
                return False
            rest = self.fresh(size_b // size_a)
            self._parts[b] = (a, *rest)
            right[:0] = rest
            left, right = list(self.resolve(tuple(left))), list(self.resolve(tuple(right)))
        return not left and not right

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
        """Cut an axis into several, outermost first; None where its parts do not allow it.

        Args:
            axis: The axis.
            sizes: Of the parts; their product is its size.
        """
        rest, parts = list(self.resolve(axis)), []
        for size in sizes:
            part: list[int] = []
            wanted = size
            while wanted > 1:
                if not rest:
                    return None
                label = rest.pop(0)
                known = self._sizes[label]
                if wanted % known == 0:
                    part.append(label)
                    wanted //= known
                elif known % wanted == 0:
                    outer, inner = self.fresh(wanted), self.fresh(known // wanted)
                    self._parts[label] = (*outer, *inner)
                    part.extend(outer)
                    rest[:0] = inner
                    wanted = 1
                else:
                    return None
            parts.append(tuple(part))
        return parts if not rest else None
