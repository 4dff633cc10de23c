r"""Score outcomes, not candidates: exact costs of all candidates of a hard LIF layer from the few outcomes they reach.

Two tiers, for the two places that a layer can have in a recognised stack (``stack.py``):

* :class:`HiddenOutcomeTier`: hidden neurons on a constant current. A candidate's spike train is one of few; the loss of
  each reachable one is found once per sample and neuron, and a candidate's cost is a look-up.
* :class:`ReadoutOutcomeTier`: the neurons whose spike counts or last membranes are the scores. Only one score changes.

Both agree with running the network again, up to float rounding; neither runs it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.functional.lif import ResetMechanism
from lightning_polystep.kernels import lif_direct_costs, lif_outcome_costs, lif_outcome_dictionary
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.stack import Capture, NotAStackError, Stack

# Shifts of all steps at once would grow with the number of steps; this many bytes of them are enough to keep busy.
_SHIFT_BYTES = 32 * 2**20


def outcome_tier(block: Block, stack: Stack, capture: Capture) -> HiddenOutcomeTier | ReadoutOutcomeTier:
    """Return the tier for a block's place in the stack.

    Args:
        block: A block of the module.
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.

    Raises:
        NotAStackError: When there is none for that place, saying why.
    """
    places = [index for index, layer in enumerate(stack.layers) if layer.linear is block.site]
    if not places:
        raise NotAStackError("it is no Linear weight of the recognised network")
    if not block.shiftable:
        raise NotAStackError("its weight belongs to several layers")
    if places[0] == len(stack.layers) - 1:
        return ReadoutOutcomeTier(stack, capture)
    if places[0] < len(stack.layers) - 2:
        raise NotAStackError("outcomes are scored through one layer of neurons so far")
    if stack.layers[places[0]].neurons.num_steps is None:
        raise NotAStackError("its neurons are driven by a current that changes over time")
    return HiddenOutcomeTier(stack, capture)


@dataclass
class _StackTier:
    """What both tiers share.

    Args:
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.
    """

    stack: Stack
    capture: Capture
    name: str = field(default="outcome", init=False)

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        del probe  # nothing is run again, so there is nothing to isolate
        per_row = proposal.vertices_per_row
        first, last = start // per_row, -(-stop // per_row)
        rows, reach = proposal.rows[first:last], proposal.reach[first:last]
        directions = proposal.probe_radius * proposal.directions.reshape(per_row, -1)
        costs = directions.new_empty(len(rows), per_row, dtype=torch.float64)
        for wide in reach.unique():
            chosen = (reach == wide).nonzero().squeeze(1)
            costs[chosen] = self._costs(proposal.block, rows[chosen], wide * directions)
        scores, _ = self.capture.scored()
        losses = self.capture.loss(self.stack) + costs.flatten() / len(scores)
        return losses[start - first * per_row : stop - first * per_row]

    def _costs(self, block: Block, rows: Tensor, displacements: Tensor) -> Tensor:
        """Return the summed loss changes of some rows' candidates, shape (rows, vertices), float64."""
        raise NotImplementedError

    def _readout(self) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return the kernels' arguments that describe the last layer: tensors, and options."""
        neurons = self.stack.layers[-1].neurons
        currents = self.capture.currents[-1]
        currents = _over_time(currents, neurons).transpose(0, 1).contiguous()
        beta, threshold = (_per_neuron(value, currents) for value in _constants(neurons))
        _, targets = self.capture.scored()
        kind = "cross_entropy_count" if isinstance(self.stack.readout, SpikeCount) else "cross_entropy_membrane"
        options = {**_dynamics(neurons), "loss": kind, "label_smoothing": self.stack.criterion.label_smoothing}
        return (currents, beta, threshold, targets), options


@dataclass
class HiddenOutcomeTier(_StackTier):
    """Hidden neurons on a constant current, followed by the last layer."""

    _dictionary: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    _dictionary_of: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    _dictionary_options: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def _costs(self, block: Block, rows: Tensor, displacements: Tensor) -> Tensor:
        index = len(self.stack.layers) - 2
        boundaries, trains = self._outcomes(self.stack.layers[index].neurons, self.capture.currents[index].dtype)
        if len(boundaries) > 1:
            boundaries, trains = boundaries[rows], trains[rows]
        readout, options = self._readout()
        return lif_outcome_costs(
            self.capture.currents[index][:, rows].contiguous(),
            _shifts(block, self.capture.inputs[index], displacements),
            boundaries,
            trains,
            self.stack.layers[-1].linear.weight.detach()[:, rows].contiguous(),
            *readout,
            **options,
        )

    def _outcomes(self, neurons: LIF, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tabulate the spike trains of constant currents; again only after a learned leak or threshold has moved."""
        constants, known = _constants(neurons), self._dictionary_of
        options = {"num_steps": neurons.num_steps, "dtype": dtype, **_dynamics(neurons)}
        moved = known is None or not all(map(torch.equal, known, constants))
        if self._dictionary is None or moved or options != self._dictionary_options:
            beta, threshold = (value.cpu() for value in constants)
            boundaries, trains = lif_outcome_dictionary(beta, threshold, **options)
            device = constants[0].device
            self._dictionary = boundaries.to(device), trains.to(device)
            self._dictionary_of = constants[0].clone(), constants[1].clone()
            self._dictionary_options = options
        return self._dictionary


@dataclass
class ReadoutOutcomeTier(_StackTier):
    """The last layer's neurons."""

    def _costs(self, block: Block, rows: Tensor, displacements: Tensor) -> Tensor:
        readout, options = self._readout()
        neurons = self.stack.layers[-1].neurons
        samples, steps, _ = readout[0].shape
        inputs = _over_time(self.capture.inputs[-1], neurons).transpose(0, 1)
        at_once = max(1, _SHIFT_BYTES // (samples * steps * inputs.element_size()))
        parts = [
            lif_direct_costs(_shifts(block, inputs, some), *readout, **options)[rows]
            for some in displacements.split(at_once)
        ]
        return torch.cat(parts, dim=1)


def _shifts(block: Block, inputs: Tensor, displacements: Tensor) -> Tensor:
    """Return how the displacements (V, D) change a pre-activation on inputs (..., D): shape (..., V)."""
    weight, bias = (displacements[:, :-1], displacements[:, -1]) if block.has_bias else (displacements, None)
    return nn.functional.linear(inputs, weight, bias)


def _over_time(values: Tensor, neurons: LIF) -> Tensor:
    """Return a constant current, or its cause, once per step: (T, N, ...)."""
    return values if neurons.num_steps is None else values.expand(neurons.num_steps, *values.shape)


def _constants(neurons: LIF) -> tuple[Tensor, Tensor]:
    return neurons.beta.detach().clamp(0, 1), neurons.threshold.detach()


def _per_neuron(value: Tensor, currents: Tensor) -> Tensor:
    return value.to(currents.dtype).expand(currents.shape[-1]).contiguous()


def _dynamics(neurons: LIF) -> dict[str, Any]:
    reset: ResetMechanism = neurons.reset_mechanism
    return {"reset_mechanism": reset, "reset_delay": neurons.reset_delay, "spike_on": neurons.spike_on}
