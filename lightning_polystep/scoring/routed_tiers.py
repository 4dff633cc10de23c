r"""Score networks with a choice among experts: candidates of the choice itself, and of the layer before it.

* :class:`RouterTier`: a row of the router shifts one logit. The loss of a sample under each expert is found once, and a
  candidate's cost is a look-up.
* :class:`BeforeChoiceTier`: a unit before the choice changes all logits and what the experts see. A candidate's cost on
  a sample is what the sample loses by going to another expert, plus what the change does to that expert's network:

  .. math:: C_{uv} = \sum_n \bigl( \ell_{n r_{nuv}}(x_n) - \ell_{n r_n}(x_n) \bigr)
            + \bigl( \ell_{n r_{nuv}}(x_n + \Delta_{nuv} e_u) - \ell_{n r_{nuv}}(x_n) \bigr) .

  The second part is for the tiers of feed-forward stacks, expert by expert, each with the shifts of its own pairs.
* :class:`BeforeChoiceResponseTier`: the same on a grid of responses. An expert has all changes of a unit between two
  limits, because logits are linear in them.

Rows of experts and of layers behind them are rows of feed-forward stacks, which see what ``routed.py`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_polystep.kernels import route_outcome_costs
from lightning_polystep.kernels.route_outcome_costs.reference import routes
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.feedforward_tiers import AFFORDABLE_ON_GRID, FeedforwardTier, ResponseTier
from lightning_polystep.scoring.routed import RoutedStack
from lightning_polystep.scoring.stack import Pass
from lightning_polystep.scoring.stack_tier import SHIFT_BYTES, Part, StackTier, without_padding


@dataclass
class RouterTier(StackTier):
    """Rows of which each makes one logit of the choice."""

    stack: RoutedStack

    def _inputs(self, seen: Pass) -> Tensor:
        return seen.inputs[self.stack.place]

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        logits, passes = self.stack.logits(seen), [self.stack.under(e, seen) for e in range(len(self.stack.experts))]
        one_logit_each = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)[:, rows]
        return route_outcome_costs(logits, shifts, one_logit_each, self.stack.losses(passes))


@dataclass
class BeforeChoiceTier(FeedforwardTier):
    """Units whose values are the inputs of the choice.

    Args:
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.
        index: Place of the scored layer, right before the choice.
        followers: Of each expert, the tier of the same layer in the network with that expert.
    """

    stack: RoutedStack
    followers: tuple[FeedforwardTier, ...]

    name = "incremental"
    default_candidates = 16384

    def exact(self) -> FeedforwardTier:
        """Return the tier with exact followers."""
        return replace(self, followers=tuple(follower.exact() for follower in self.followers))

    def approximation(self) -> str:
        """Say what its followers approximate."""
        return self.followers[0].approximation()

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        return without_padding(super()._parts(seen, proposal, rows, reach))

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        passes = [self.stack.under(expert, seen) for expert in range(len(self.followers))]
        logits, losses = self.stack.logits(seen), self.stack.losses(passes)
        preactivation, weight = seen.currents[self.index], self.stack.choice_weight()
        # Each unit has changes and routes of its own, which are held for a few of them at a time.
        at_once = max(1, SHIFT_BYTES // (shifts.shape[-1] * len(logits) * shifts.element_size()))
        costs = []
        for places in torch.arange(len(rows), device=rows.device).split(at_once):
            units = rows[places]
            own = shifts if shifts.ndim == 2 else shifts[places]
            x = preactivation[:, units].T[..., None]
            changes = self.stack.activated(self.index, x + own) - self.stack.activated(self.index, x)
            route, into = routes(logits, changes, weight[:, units]), weight[:, units].contiguous()
            some = route_outcome_costs(logits, changes, into, losses)
            for expert, (follower, inside) in enumerate(zip(self.followers, passes, strict=True)):
                some += follower._costs(inside, units, torch.where(route == expert, own, 0))
            costs.append(some)
        return torch.cat(costs)


@dataclass
class BeforeChoiceResponseTier(BeforeChoiceTier):
    """Units whose values are the inputs of the choice, and continuous: their responses are found on a grid."""

    followers: tuple[ResponseTier, ...]

    name = "grid"
    default_candidates = AFFORDABLE_ON_GRID

    def exact(self) -> FeedforwardTier:
        """Return the tier that follows each candidate."""
        followers = tuple(follower.exact() for follower in self.followers)
        return BeforeChoiceTier(self.stack, self.capture, self.index, followers)

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        return FeedforwardTier._parts(self, seen, proposal, rows, reach)

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        passes = [self.stack.under(expert, seen) for expert in range(len(self.followers))]
        logits, losses, weight = self.stack.logits(seen), self.stack.losses(passes), self.stack.choice_weight()[:, rows]
        more = losses - losses.gather(1, logits.argmax(1, keepdim=True))
        costs = losses.new_zeros(len(rows), shifts.shape[-1])
        for expert, (follower, inside) in enumerate(zip(self.followers, passes, strict=True)):
            lower, upper = chosen_between(logits, weight, expert)
            offset = more[:, expert].to(shifts.dtype)
            costs += follower._costs(inside, rows, shifts, lower=lower, upper=upper, offset=offset)
        return costs


def chosen_between(logits: Tensor, weight: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Return from which to which change of each unit a sample goes to an expert: an interval, as logits are linear.

    Args:
        logits: Of the incumbent, (N, E).
        weight: By how much a unit's value changes them, (E, U).
        expert: Which one; of equal logits the first wins.

    Returns:
        The least and the greatest such change, (N, U) each; the greatest is below the least where there is none.

    Example:
        >>> chosen_between(torch.tensor([[0.0, 3.0]]), torch.tensor([[2.0], [0.5]]), expert=0)
        (tensor([[2.]]), tensor([[inf]]))
    """
    infinity = logits.new_tensor(torch.inf)
    lower = logits.new_full((len(logits), weight.shape[1]), -torch.inf)
    upper = -lower
    for other in range(logits.shape[1]):
        ahead, slope = (logits[:, expert] - logits[:, other])[:, None], weight[expert] - weight[other]
        equal = -ahead / slope
        from_, to = (equal.nextafter(infinity), equal.nextafter(-infinity)) if other < expert else (equal, equal)
        lower = torch.where(slope > 0, torch.maximum(lower, from_), lower)
        upper = torch.where(slope < 0, torch.minimum(upper, to), upper)
        never = (slope == 0) & ((ahead < 0) | ((ahead == 0) & (other < expert)))
        upper = torch.where(never, -infinity, upper)
    return lower, upper
