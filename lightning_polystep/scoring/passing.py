"""Score: how strongly places of a layer's products reach places of what its units pass on, and how that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape import Relation


class Passing(NamedTuple):
    """How what products make reaches sinks that are laid out alike, as at several steps of time.

    Args:
        sinks: These.
        strength: By how much the products of a key change a sink, (keys, sinks).
        places: Which places reach which.
    """

    sinks: list[int]
    strength: Tensor
    places: Relation

    @classmethod
    def seen(
        cls,
        sinks: list[int],
        sizes: Sequence[int],
        later: Sequence[int],
        hit: Sequence[Mapping[int, Tensor]],
        touched: Mapping[tuple[int, int], Mapping[int, Tensor]],
    ) -> Passing:
        """Tell from what changes when products are touched.

        Args:
            sinks: What is looked at.
            sizes: How many places each axis of the products has.
            later: How many each axis of the sinks has.
            hit: By how much places of each sink change when all of the products of a key do; one for each key.
            touched: Likewise when one place of an axis of the first does, by axis and place.
        """
        strength = torch.stack([torch.stack([each[sink].mean() for sink in sinks]) for each in hit])
        by_place = {place: torch.stack([each[sink] for sink in sinks]).mean(0) for place, each in touched.items()}
        return cls(sinks, strength, Relation.seen(sizes, later, by_place))


def remembered(memory: dict[str, Tensor], passing: Sequence[Passing]) -> None:
    """Keep what was found out.

    Args:
        memory: It is written into.
        passing: Of all groups of sinks.
    """
    memory.clear()
    for group, (_, strength, places) in enumerate(passing):
        memory[f"strength/{group}"] = strength
        for own, row in enumerate(places.matrices):
            memory.update({f"places/{group}/{own}/{other}": matrix for other, matrix in enumerate(row)})


def recalled(
    memory: Mapping[str, Tensor],
    groups: Sequence[list[int]],
    keys: int,
    sizes: Sequence[int],
    later: Sequence[Sequence[int]],
) -> list[Passing] | None:
    """Return what was kept; None where it was not, or is of products of another kind.

    Args:
        memory: What was kept.
        groups: The sinks.
        keys: How many products there are.
        sizes: How many places each axis of the products has.
        later: Likewise of the sinks of each group.
    """
    found = []
    for group, (sinks, own_later) in enumerate(zip(groups, later, strict=True)):
        wanted = {f"strength/{group}": (keys, len(sinks))} | {
            f"places/{group}/{own}/{other}": (size, own_later[other])
            for own, size in enumerate(sizes)
            for other in range(len(own_later))
        }
        if not all(name in memory and tuple(memory[name].shape) == shape for name, shape in wanted.items()):
            return None
        matrices = [
            [memory[f"places/{group}/{own}/{other}"] for other in range(len(own_later))] for own in range(len(sizes))
        ]
        relation = Relation(matrices, list(sizes), list(own_later))
        found.append(Passing(sinks, memory[f"strength/{group}"], relation))
    return found
