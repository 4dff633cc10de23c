"""Score: networks of which one stage sends each sample through one of several experts, and what each expert sees.

With every sample sent to the same expert, such a network is a feed-forward one. There are as many of these as experts,
and tiers of feed-forward stacks score candidates on them; what the choice adds is in ``routed_tiers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Scores
from lightning_polystep.kernels.feedforward import losses as losses_of_each
from lightning_polystep.scoring.feedforward import FeedforwardStack
from lightning_polystep.scoring.stack import Captured, Pass, Stack

# What a sum may be off when a product of matrices has another number of rows.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class RoutedStack(FeedforwardStack):
    """A recognised network with a choice; a subclass for each kind of it.

    Args:
        network: The whole network.
        criterion: The loss.
        layers: Those that run once on all samples, first to last: before the choice, at it, and behind it.
        place: Of the layer at the choice: it and the choice have the same inputs.
        experts: Of each outcome of the choice, the whole network as it were if all samples had that outcome. The layers
            before the choice come first, in the same places as here, and those behind it last.
        behind: The layers behind the choice; None where what it passes on are the scores.
    """

    place: int
    experts: tuple[FeedforwardStack, ...]
    behind: FeedforwardStack | None

    between = "the activation or the choice behind layer"

    def logits(self, seen: Pass) -> Tensor:
        """Return what the choice is made by, (N, E): the outcome is the highest, of equal ones the first."""
        raise NotImplementedError

    def choice_weight(self) -> Tensor:
        """Return what multiplies the inputs of the choice, (E, D)."""
        raise NotImplementedError

    def under(self, expert: int, seen: Pass, samples: Tensor | None = None) -> Pass:
        """Return what the network with one expert sees.

        Args:
            expert: Which one.
            seen: What the stack saw.
            samples: Indices of some samples, whatever their own expert is; all by default.
        """
        stack = self.experts[expert]
        inputs, currents = seen.inputs[: self.place + 1], seen.currents[: self.place]
        targets = seen.targets
        if samples is not None:
            inputs, currents = [part[samples] for part in inputs], [part[samples] for part in currents]
            targets = targets[samples]
        *inputs, arriving = inputs
        for place, linear in enumerate(stack.linears[self.place :], start=self.place):
            inputs.append(arriving)
            currents.append(type(linear).forward(linear, arriving).detach())
            arriving = stack.passed_on(place, arriving, currents[-1])
        return Pass(inputs, currents, arriving, targets)

    def losses(self, passes: list[Pass]) -> Tensor:
        """Return the loss of each sample under each expert, (N, E), float64.

        Args:
            passes: Of each expert, on all samples.
        """
        heads = (Scores(seen.scores, seen.targets, self.loss, 0.0) for seen in passes)
        return torch.stack([losses_of_each(head, head.scores) for head in heads], 1)

    def passed_on(self, place: int, inputs: Tensor, currents: Tensor) -> Tensor:
        """Return what follows a layer; behind the one at the choice, what the experts make of their samples."""
        if place != self.place:
            return super().passed_on(place, inputs, currents)
        nothing = inputs.new_empty(len(inputs), 0)
        empty = [nothing] * self.place
        seen = Pass([*empty, inputs], [*empty, currents], nothing, nothing)
        route, parts = self.logits(seen).argmax(-1), []
        for expert, stack in enumerate(self.experts):
            own = self.under(expert, seen, (route == expert).nonzero().squeeze(1))
            behind = 0 if self.behind is None else len(self.behind.layers)
            parts.append([*own.inputs, own.scores][len(stack.layers) - behind])
        return torch.cat(parts)[route.argsort(stable=True).argsort()]

    def agree(self, place: int, own: Tensor, seen: Tensor) -> bool:
        """Tell whether what follows a layer is what was seen, up to rounding where experts ran on other samples."""
        if place != self.place:
            return super().agree(place, own, seen)
        if own.shape != seen.shape:
            return False
        # A choice between almost equal logits may turn out otherwise.
        close = (own - seen).abs() <= _ROUNDING * seen.abs().max()
        return int((~close.all(-1)).sum()) <= self.rounded


@dataclass(frozen=True)
class PartOfAPass:
    """What a part of a routed stack saw.

    Args:
        whole: The captured pass.
        routed: The whole stack.
    """

    whole: Captured
    routed: RoutedStack

    @property
    def samples(self) -> int:
        """Samples of the whole pass."""
        return self.whole.samples

    @property
    def scored_samples(self) -> int:
        """Samples of the whole pass that are scored."""
        return self.whole.scored_samples

    def loss(self, stack: Stack) -> Tensor:
        """Return the incumbent's loss of the whole pass."""
        del stack
        return self.whole.loss(self.routed)

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what the part saw."""
        raise NotImplementedError


@dataclass(frozen=True)
class SeenByExpert(PartOfAPass):
    """What the network with one expert saw of the samples that this expert has; nothing where it has none."""

    expert: int

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what the expert's network saw."""
        del stack
        for seen in self.whole.slices(self.routed):
            samples = (self.routed.logits(seen).argmax(-1) == self.expert).nonzero().squeeze(1)
            if len(samples):
                yield self.routed.under(self.expert, seen, samples)


@dataclass(frozen=True)
class SeenBehind(PartOfAPass):
    """What the layers behind the choice saw."""

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what they saw."""
        del stack
        after = self.routed.place + 1
        for seen in self.whole.slices(self.routed):
            yield Pass(seen.inputs[after:], seen.currents[after:], seen.scores, seen.targets)
