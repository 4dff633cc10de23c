"""Score by a part of the module that knows what a change of one row of its parameter does to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.tier import NotOfferedError, Tier

# Bytes that a candidate takes on its way: its row, its displacement, its loss.
_BYTES = 64


class KnowsRows(Protocol):
    """What a module may be that holds a parameter whose rows act on the loss each in a way that is quickly told."""

    def evaluate_rows(self, name: str, rows: Tensor, values: Tensor) -> Tensor:
        """Return the loss of each of K candidates, of which each differs from the module in one row, shape (K,).

        Args:
            name: Of the parameter, in the module that has this method.
            rows: Which row each candidate changes, shape (K,), int64; of a vector a row is one number.
            values: To what, shape (K, D).
        """
        ...


class RowsTier(Tier):
    """Hands rows and their new values to the ``evaluate_rows`` of the module that holds the parameter.

    Args:
        evaluate_rows: The method.
        name: Of the parameter, in that module.
    """

    name: ClassVar[str] = "evaluate_rows"

    def __init__(self, evaluate_rows: Callable[[str, Tensor, Tensor], Tensor], name: str) -> None:
        self._evaluate_rows = evaluate_rows
        self._parameter = name

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        rows, displacements = proposal.displacements(start, stop)
        (parameter,) = proposal.block.parameters
        values = parameter.detach().reshape(proposal.block.rows, -1)[rows] + displacements
        losses = probe.run(lambda: self._evaluate_rows(self._parameter, rows, values))
        if losses.shape != (len(rows),):
            raise ValueError(f"evaluate_rows returned shape {tuple(losses.shape)} for {len(rows)} candidates.")
        return losses

    def affordable(self) -> int | None:
        """Return None: candidates are nearly free."""
        return None

    def chunking(self, memory_budget: int) -> Chunking:
        """Return how many candidates one call is given."""
        return Chunking(max(1, memory_budget // _BYTES))


def offer_rows(module: nn.Module, block: Block) -> RowsTier:
    """Return the tier of a block whose parameter belongs to a module with ``evaluate_rows``.

    Raises:
        NotOfferedError: When it does not.
    """
    owner, _, name = block.parameter_names[0].rpartition(".") if block.parameter_names else ("", "", "")
    method: Any = getattr(module.get_submodule(owner), "evaluate_rows", None) if name else None
    if not callable(method):
        raise NotOfferedError("the module of the parameter has no method evaluate_rows")
    if len(block.parameters) > 1:
        raise NotOfferedError("a row is of more than one parameter")
    return RowsTier(method, name)


def knows_rows(module: nn.Module) -> bool:
    """Tell whether some part of a module has ``evaluate_rows``."""
    return any(hasattr(part, "evaluate_rows") for part in module.modules())


__all__ = ["KnowsRows", "RowsTier", "knows_rows", "offer_rows"]
