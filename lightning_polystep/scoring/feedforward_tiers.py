r"""Score feed-forward networks: candidates of a layer of step functions, of ReLUs, and of the last layer.

* :class:`StepOutcomeTier`: a unit that steps between a few levels. The loss of each level that some candidate reaches
  is found once per sample and unit, and a candidate's cost is a look-up. :class:`FineStepTier`: likewise, between many,
  which costs nearly as much as to follow each candidate.
* :class:`ReLUTier` and :class:`LinearTier`: a unit with a continuous response. Each candidate's change is followed
  through the layers behind, where it is not zero.
* :class:`ResponseTier`: the same units, and those of many levels, where that is asked for: changes are followed on a
  grid only, and candidates interpolated. An approximation.
* :class:`ScoreTier`: the last layer. One score changes, by the shift itself.

All others agree with running the network again, up to float rounding; none runs it again. Layers with quantised
weights shift by what the requantised row does, which differs from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.kernels import (
    relu_direct_costs,
    relu_grid_costs,
    score_direct_costs,
    step_function_dictionary,
    step_outcome_costs,
)
from lightning_polystep.layers import QuantLinear
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.feedforward import (
    FeedforwardLayer,
    FeedforwardStack,
    effective_inputs,
    effective_weight,
)
from lightning_polystep.scoring.requantised import requantised_shifts
from lightning_polystep.scoring.stack import Captured, Pass
from lightning_polystep.scoring.stack_tier import SHIFT_BYTES, Part, StackTier

# Candidates per step where each costs about as much as carrying a change through the layers behind.
_AFFORDABLE = 16384
# The same where a candidate is interpolated.
AFFORDABLE_ON_GRID = 65536
# Up to so many levels a unit's outcomes are few, whatever the number of candidates.
_FEW_LEVELS = 16


@dataclass
class FeedforwardTier(StackTier):
    """A tier of a stack of Linear layers and activations."""

    stack: FeedforwardStack
    _dictionaries: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def layer(self) -> FeedforwardLayer:
        """The scored layer."""
        return self.stack.layers[self.index]

    def exact(self) -> FeedforwardTier:
        """Return the tier of which this one is an approximation; itself where it is none."""
        return self

    def _inputs(self, seen: Pass) -> Tensor:
        return effective_inputs(self.layer.linear, seen.inputs[self.index])

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        linear = self.layer.linear
        if not isinstance(linear, QuantLinear) or linear.weight_format == "float":
            yield from super()._parts(seen, proposal, rows, reach)
            return
        inputs = self._inputs(seen)
        centred = inputs if proposal.centre is None else inputs - proposal.centre
        steps = proposal.probe_radius * proposal.directions.reshape(-1, proposal.directions.shape[-1])
        vertices = torch.arange(len(steps), device=steps.device)
        at_once = max(1, SHIFT_BYTES // (len(steps) * len(inputs) * inputs.element_size()))
        for places in torch.arange(len(rows), device=rows.device).split(at_once):
            yield Part(places, vertices, requantised_shifts(linear, centred, rows[places], reach[places], steps))

    def _behind(self, seen: Pass, rows: Tensor) -> dict[str, Any]:
        """Return the kernels' arguments for the layers behind, and the loss."""
        last = len(self.stack.layers) - 1
        behind = [place for place in range(self.index + 1, last) if not self.stack.is_linear(place)]
        tables = [self._dictionary(place, seen.currents[place]) for place in behind]
        # A change passes Linear layers without an activation between them as it passes their product.
        weights, start = [], self.index + 1
        for place in [*behind, last]:
            factors = [effective_weight(layer.linear) for layer in self.stack.layers[start : place + 1]]
            weights.append(reduce(lambda before, following: following @ before, factors))
            start = place + 1
        weights[0] = weights[0][:, rows]
        return {
            "behind_preactivations": [seen.currents[place] for place in behind],
            "behind_boundaries": [boundaries for boundaries, _ in tables],
            "behind_levels": [levels for _, levels in tables],
            "weights": [weight.contiguous() for weight in weights],
            "scores": seen.scores,
            "target": seen.targets,
            "loss": self.stack.loss,
        }

    def _dictionary(self, place: int, preactivation: Tensor) -> tuple[Tensor, Tensor]:
        """Return boundaries and levels of what a layer hands on, empty for ReLU; tabulated when its levels change."""
        steps, dtype, device = self.stack.steps(place), preactivation.dtype, preactivation.device
        if steps is None:
            nothing = torch.empty(1, 0, dtype=dtype, device=device)
            return nothing, nothing
        promised, known = self.stack.levels(place, dtype), self._dictionaries.get(place)
        if known is None or not torch.equal(known[0], promised):
            with torch.no_grad():
                boundaries, levels = step_function_dictionary(
                    lambda x: self.stack.hand_on(place, x.to(device)).cpu(), len(steps.levels(dtype)), dtype
                )
            known = promised, boundaries[None].to(device), levels[None].to(device)
            self._dictionaries[place] = known
        return known[1], known[2]


@dataclass
class StepOutcomeTier(FeedforwardTier):
    """Units that step between a few levels."""

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        preactivation = seen.currents[self.index][:, rows].contiguous()
        boundaries, levels = self._dictionary(self.index, preactivation)
        return step_outcome_costs(preactivation, shifts, boundaries, levels, **self._behind(seen, rows))


@dataclass
class FineStepTier(StepOutcomeTier):
    """Units that step between so many levels that hardly two candidates share one."""

    default_candidates = _AFFORDABLE


@dataclass
class ReLUTier(FeedforwardTier):
    """Units with a continuous response."""

    name = "incremental"
    default_candidates = _AFFORDABLE

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        preactivation = seen.currents[self.index][:, rows].contiguous()
        return relu_direct_costs(preactivation, shifts, **self._behind(seen, rows))


@dataclass
class LinearTier(ReLUTier):
    """Units that hand on their pre-activations as they are."""

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        nothing = seen.currents[self.index].new_zeros(len(seen.scores), len(rows))
        return relu_direct_costs(nothing, shifts, **self._behind(seen, rows), floor=-math.inf)


@dataclass
class ResponseTier(FeedforwardTier):
    """Units whose responses are found on a grid.

    Args:
        nodes: Of the grid, for a unit and a sample.
    """

    nodes: int = field(kw_only=True)

    name = "grid"
    default_candidates = AFFORDABLE_ON_GRID

    def exact(self) -> FeedforwardTier:
        """Return the tier that follows each candidate."""
        return feedforward_tier(self.index, self.stack, self.capture)

    def approximation(self) -> str:
        """Say what is approximated."""
        return f"interpolated between {self.nodes} responses"

    @property
    def is_continuous(self) -> bool:
        """Whether the units hand on a continuous response: no step function follows."""
        return self.stack.steps(self.index) is None

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor, **limits: Tensor) -> Tensor:
        """Return the loss changes.

        Args:
            seen: The samples.
            rows: (R,).
            shifts: (N, V) or (R, N, V).
            limits: Further arguments of the kernel, for continuous responses.
        """
        if not self.is_continuous:
            return self._of_steps(seen, rows, shifts)
        if self.stack.is_linear(self.index):
            return self._of_changes(seen, rows, shifts, **limits)
        preactivation = seen.currents[self.index][:, rows].contiguous()
        return relu_grid_costs(preactivation, shifts, **self._behind(seen, rows), nodes=self.nodes, **limits)

    def _of_steps(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        """Return the costs of units of many levels, for as many of them at once as their shifts would be."""
        at_once = max(1, SHIFT_BYTES // (shifts.shape[-2] * shifts.shape[-1] * shifts.element_size()))
        costs = []
        for places in torch.arange(len(rows), device=rows.device).split(at_once):
            x = seen.currents[self.index][:, rows[places]].T[..., None]
            moved = x + (shifts if shifts.ndim == 2 else shifts[places])
            changes = self.stack.hand_on(self.index, moved) - self.stack.hand_on(self.index, x)
            costs.append(self._of_changes(seen, rows[places], changes))
        return torch.cat(costs)

    def _of_changes(self, seen: Pass, rows: Tensor, changes: Tensor, **limits: Tensor) -> Tensor:
        """Return the costs of changes of the units' values, (N, V) or (R, N, V)."""
        nothing, behind = changes.new_zeros(len(seen.scores), len(rows)), self._behind(seen, rows)
        return relu_grid_costs(nothing, changes, **behind, floor=-math.inf, nodes=self.nodes, **limits)


@dataclass
class ScoreTier(FeedforwardTier):
    """The last layer."""

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        scores, targets = seen.scores, seen.targets
        options = {"loss": self.stack.loss}
        if shifts.ndim == 2:
            return score_direct_costs(shifts, scores, targets, **options)[rows]
        every = shifts.new_zeros(scores.shape[1], *shifts.shape[1:])
        every[rows] = shifts
        return score_direct_costs(every, scores, targets, **options)[rows]


def feedforward_tier(place: int, stack: FeedforwardStack, capture: Captured, response_grid: int = 0) -> FeedforwardTier:
    """Return the tier for the candidates of a layer.

    Args:
        place: Of the layer.
        stack: The stack.
        capture: What its layers saw in the latest commit pass.
        response_grid: Nodes of the grid on which continuous responses are found; 0 follows each candidate.
    """
    if place == len(stack.layers) - 1:
        return ScoreTier(stack, capture, place)
    steps = stack.steps(place)
    if steps is not None and len(steps.levels(torch.float64)) <= _FEW_LEVELS:
        return StepOutcomeTier(stack, capture, place)
    if response_grid:
        return ResponseTier(stack, capture, place, nodes=response_grid)
    if stack.is_linear(place):
        return LinearTier(stack, capture, place)
    return (ReLUTier if steps is None else FineStepTier)(stack, capture, place)
