"""Score: what the tiers of a recognised stack share: which rows, which shifts, and the last layer with its loss."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_polystep.functional.neurons import ResetMechanism
from lightning_polystep.layers import LIF
from lightning_polystep.particles import Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.spiking import SpikingLayer, SpikingStack
from lightning_polystep.scoring.stack import Captured, Pass, Stack
from lightning_polystep.scoring.tier import Tier

# Shifts of all steps at once would grow with the number of steps. So many bytes of them keep the kernels busy, and the
# allocator keeps such blocks instead of asking the system for new pages each time.
SHIFT_BYTES = 16 * 2**20
# Candidates that the kernels take at once; a count that is no multiple would be padded by a copy.
_TILE = 64
# Samples on which changed pairs are counted: of thousands of candidates each, so the share is off by little.
_COUNTED_SAMPLES = 8


class Part(NamedTuple):
    """Candidates that are scored together.

    Args:
        places: Of their rows among those asked for, (R,).
        vertices: Of each of these rows, (V,).
        shifts: How they shift the pre-activation, (N, ..., V) for all rows alike, or (R, N, V); columns beyond V are
            padding.
    """

    places: Tensor
    vertices: Tensor
    shifts: Tensor


@dataclass
class StackTier(Tier):
    """Scores candidates from what the layers of a stack saw in the commit pass; runs nothing again.

    Args:
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.
        index: Place of the scored layer in the stack.
    """

    stack: Stack
    capture: Captured
    index: int

    name: ClassVar[str] = "outcome"
    samples_by_importance: ClassVar[bool] = True
    # What a step may cost by default; None where candidates are nearly free.
    default_candidates: ClassVar[int | None] = None

    def affordable(self) -> int | None:
        """Return how many candidates a step scores where no rank is asked for; None where they are nearly free."""
        return self.default_candidates

    def chunking(self, memory_budget: int) -> Chunking:
        """Return that all candidates are scored at once: parts are cut inside."""
        del memory_budget
        return Chunking(sys.maxsize)

    def piece(self, proposal: Proposal, chunk: int) -> int:
        """Return the candidates of a row: its outcomes are tabulated once for all of them."""
        del chunk
        return proposal.vertices_per_row

    def incumbent(self, loss: Tensor) -> Tensor:
        """Return the incumbent's loss in float64, from its scores."""
        del loss
        return self.capture.loss(self.stack)

    def scored_samples(self, samples: int) -> int:
        """Return on how many samples of a micro-batch candidates are scored."""
        return min(samples, self.capture.scored_samples)

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        del probe  # nothing is run again, so there is nothing to isolate
        per_row = proposal.vertices_per_row
        first, last = start // per_row, -(-stop // per_row)
        rows, reach = proposal.rows[first:last], proposal.reach[first:last]
        # Not a loop, whose variable would hold a slice while the next one is replayed.
        slices = map(partial(self._all_costs, proposal, rows, reach), self.capture.slices(self.stack))
        # In place: see `layers.sliced.Rows` for what is kept among large tensors that come and go.
        costs = reduce(Tensor.add_, slices, reach.new_zeros(len(rows), per_row, dtype=torch.float64))
        losses = self.capture.loss(self.stack) + costs.flatten() / self.capture.samples
        return losses[start - first * per_row : stop - first * per_row]

    def changed_pairs(self, proposal: Proposal) -> float:
        """Estimate the share of pairs of a candidate and a sample in which the candidate changes the sample's loss.

        The kernels skip the others as they meet them and do not count; a few samples of the batch, each scored alone,
        tell the share at little cost.

        Args:
            proposal: All candidates of the block.
        """
        seen = next(self.capture.slices(self.stack), None)
        if seen is None:  # no sample is scored: an expert has none
            return 0.0
        every = max(1, len(seen.scores) // _COUNTED_SAMPLES)
        samples = [slice(n, n + 1) for n in range(0, len(seen.scores), every)[:_COUNTED_SAMPLES]]
        costs = [self._all_costs(proposal, proposal.rows, proposal.reach, seen.of(sample)) for sample in samples]
        return float((torch.stack(costs) != 0).double().mean())

    def _all_costs(self, proposal: Proposal, rows: Tensor, reach: Tensor, seen: Pass) -> Tensor:
        """Return the loss changes, summed over some samples, of all candidates of some rows, (R, vertices), float64."""
        costs = reach.new_empty(len(rows), proposal.vertices_per_row, dtype=torch.float64)
        for part in self._parts(seen, proposal, rows, reach):
            scored = self._costs(seen, rows[part.places], part.shifts)
            costs[part.places[:, None], part.vertices] = scored[:, : len(part.vertices)]
        return costs

    def _inputs(self, seen: Pass) -> Tensor:
        """Return what the layer's Linear saw of some samples, (N, ..., D)."""
        raise NotImplementedError

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        """Return the loss changes, summed over some samples, of candidates that shift the pre-activation of some rows.

        Args:
            seen: The samples.
            rows: (R,).
            shifts: (N, ..., V), the same for all rows; or (R, N, ..., V) where a tier makes them so.

        Returns:
            Shape (R, V), float64.
        """
        raise NotImplementedError

    def _parts(self, seen: Pass, proposal: Proposal, rows: Tensor, reach: Tensor) -> Iterator[Part]:
        """Cut the candidates of some rows into parts of at most ``SHIFT_BYTES``."""
        del rows  # the same directions act alike on all
        for vertices, shifts in self._shifts(proposal, self._inputs(seen)):
            for wide in reach.unique():
                places = (reach == wide).nonzero().squeeze(1)
                yield Part(places, vertices, shifts if wide == 1 else wide * shifts)

    def _shifts(self, proposal: Proposal, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield vertices of a row by and by, (V,), and how they shift its pre-activation at reach 1, (N, ..., V)."""
        particles, count, dim = proposal.directions.shape
        directions = proposal.probe_radius * proposal.directions.reshape(-1, dim)
        vertices = torch.arange(len(directions), device=inputs.device)
        if proposal.mirrored:
            vertices = vertices.reshape(particles, count)[:, : count // 2].flatten()
        positions = inputs.numel() // inputs.shape[-1]
        at_once = max(1, SHIFT_BYTES // (positions * inputs.element_size()))
        for some in vertices.split(at_once):
            chosen = directions[some]
            weight, bias = (chosen[:, :-1], chosen[:, -1]) if proposal.block.has_bias else (chosen, None)
            shifts = nn.functional.linear(inputs, weight, bias)
            if proposal.mirrored:
                yield torch.cat([some, some + count // 2]), _mirrored(shifts)
            else:
                yield some, shifts


@dataclass
class SpikingTier(StackTier):
    """A tier of a stack of LIF layers."""

    stack: SpikingStack

    @property
    def layer(self) -> SpikingLayer:
        """The scored layer."""
        return self.stack.layers[self.index]

    def readout(self, seen: Pass) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return the kernels' arguments that describe the last layer: tensors, and options."""
        neurons = self.stack.layers[-1].neurons
        currents = self.currents(seen, len(self.stack.layers) - 1)
        options = {**dynamics(neurons), "loss": self.stack.loss}
        return (currents, *constants_of_each(neurons, currents), seen.targets), options

    def currents(self, seen: Pass, index: int) -> Tensor:
        """Return what drives a layer's neurons, (N, T, H)."""
        return over_time(seen.currents[index], self.stack.layers[index].neurons).transpose(0, 1).contiguous()


def without_padding(parts: Iterator[Part]) -> Iterator[Part]:
    """Cut off the padding, for tiers that make more of the shifts than a kernel's argument."""
    for part in parts:
        yield part._replace(shifts=part.shifts[..., : len(part.vertices)])


def _mirrored(shifts: Tensor) -> Tensor:
    """Return shifts, minus shifts, and zeros up to whole tiles, in one pass: these are the largest tensors of a step.

    Rounding is symmetric: minus a product is the product with minus, to the bit.
    """
    half = shifts.shape[-1]
    both = shifts.new_empty(*shifts.shape[:-1], 2 * half + -2 * half % _TILE)
    both[..., :half] = shifts
    torch.neg(shifts, out=both[..., half : 2 * half])
    both[..., 2 * half :] = 0
    return both


def over_time(values: Tensor, neurons: LIF) -> Tensor:
    """Return a constant current, or its cause, once per step: (T, N, ...)."""
    return values if neurons.num_steps is None else values.expand(neurons.num_steps, *values.shape)


def constants(neurons: LIF) -> tuple[Tensor, Tensor]:
    """Return the leak, as the neuron applies it, and the threshold."""
    return neurons.beta.detach().clamp(0, 1), neurons.threshold.detach()


def constants_of_each(neurons: LIF, currents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leak and the threshold of each neuron, (H,), in the dtype of its currents (..., H)."""
    beta, threshold = (value.to(currents.dtype).expand(currents.shape[-1]).contiguous() for value in constants(neurons))
    return beta, threshold


def dynamics(neurons: LIF) -> dict[str, Any]:
    """Return what a spike does, as the kernels' options."""
    reset: ResetMechanism = neurons.reset_mechanism
    return {"reset_mechanism": reset, "reset_delay": neurons.reset_delay, "spike_on": neurons.spike_on}
