"""Score: what layers go by, so that what is learned of them is found again in the next step and in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.tape import Entries, Entry, products_with

# Where mirrors, and how strongly places reach others, are kept among what was learned: no parameter has such a name.
_MIRRORS, _REACHES = "mirrors of", "reaches of"


@dataclass(frozen=True)
class Naming:
    """Names what is learned on a step.

    Args:
        recording: The step; it keeps what is learned, by name.
    """

    recording: Recording

    def reaches(self, entries: Entries) -> dict[str, Tensor]:
        """Return where it is kept how strongly the places of a layer reach others.

        Args:
            entries: The products of the layer, and what lies behind.
        """
        tape, product = self.recording.taken(), entries.products[0]
        name = f"value {product.made}"
        if product.weight is not None:
            alone = len(products_with(tape, entries.behind, product.weight)) <= len(entries.products)
            name = self.of_weights(product.weight) + ("" if alone else f" for {name}")
        places = " by ".join(str(size) for size in tape.values[product.made].tensor.shape[1:])
        return self.recording.learned.setdefault(f"{_REACHES} {name}, {places}", {})

    def mirror(self, product: Entry) -> Mirror:
        """Return the mirror of a product, which all layers before it share.

        Args:
            product: With weights.
        """
        tape = self.recording.taken()
        assert product.weight is not None
        shape = " by ".join(str(size) for size in tape.values[product.weight].tensor.shape)
        name = f"{self.of_weights(product.weight)}, {shape}"
        return Mirror(name, self.recording.learned.setdefault(f"{_MIRRORS} {name}", {}))

    def of_weights(self, weight: int) -> str:
        """Return the name of a parameter from which weights are made; their place on the tape where there is none.

        Args:
            weight: The value of the weights.
        """
        tape, names = self.recording.taken(), self.recording.names
        named = {index: names[identity] for identity, index in tape.leaves.items() if identity in names}
        needed = {weight}
        for operation in reversed(tape.operations):
            if not needed.isdisjoint(operation.outputs):
                needed.update(operation.operands)
        found = [named[index] for index in sorted(needed) if index in named]
        return found[0] if found else f"value {weight}"
