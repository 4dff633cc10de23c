"""Score by the module itself: an objective that evaluates many candidates at once, as batched rollouts do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.tier import NotOfferedError, Tier

# Candidates of one call, so that processes can divide them.
_AT_ONCE = 256
_AFFORDABLE = 2_048


class Objective(Protocol):
    """What a module may be beside its step: something that evaluates many parameters at once.

    ``training_step``, or the closure of :meth:`Engine.step`, stays the truth: the plan compares candidates with it.
    """

    def evaluate_many(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of each of K candidates on the batch of the latest step, shape (K,).

        Args:
            parameters: The parameters in which candidates differ, by their names in ``named_parameters()``, (K, ...);
                all others are those of the module.
        """
        ...


class ManyTier(Tier):
    """Hands candidates to the module's own ``evaluate_many``.

    Args:
        evaluate_many: The method.
    """

    name: ClassVar[str] = "evaluate_many"

    def __init__(self, evaluate_many: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        self._evaluate_many = evaluate_many

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        block = proposal.block
        rows, displacements = proposal.displacements(start, stop)
        named = dict(zip(block.parameter_names, block.with_displaced(rows, displacements), strict=True))
        losses = probe.run(lambda: self._evaluate_many(named))
        if losses.shape != (len(rows),):
            raise ValueError(f"evaluate_many returned shape {tuple(losses.shape)} for {len(rows)} candidates.")
        return losses

    def affordable(self) -> int | None:
        """Return how many candidates a step scores where no rank is asked for."""
        return _AFFORDABLE

    def chunking(self, memory_budget: int) -> Chunking:
        """Return how many candidates one call is given; fewer when memory runs out."""
        del memory_budget
        return Chunking(_AT_ONCE)


def offer_many(module: nn.Module, block: Block) -> ManyTier:
    """Return the tier of a module that evaluates many candidates at once.

    Raises:
        NotOfferedError: When its ``evaluate_many`` is no method.
    """
    del block
    method: Any = getattr(module, "evaluate_many", None)
    if not callable(method):
        raise NotOfferedError("the module's evaluate_many is no method")
    return ManyTier(method)
