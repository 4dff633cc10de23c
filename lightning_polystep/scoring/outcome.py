r"""Score outcomes, not candidates: exact costs of all candidates of a hard LIF layer from the few outcomes they reach.

Two tiers, for two places that a layer can have in a recognised stack (``stack.py``):

* :class:`HiddenOutcomeTier`: hidden neurons on a constant current. A candidate's spike train is one of few; the loss of
  each reachable one is found once per sample and neuron, and a candidate's cost is a look-up.
* :class:`ReadoutOutcomeTier`: the neurons whose spike counts or last membranes are the scores. Only one score changes.

Both agree with running the network again, up to float rounding; neither runs it again. Hidden layers in other places
are for ``incremental.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.kernels import lif_direct_costs, lif_outcome_costs, lif_outcome_dictionary
from lightning_polystep.layers import LIF
from lightning_polystep.scoring.stack import Pass
from lightning_polystep.scoring.stack_tier import SpikingTier, constants, dynamics, over_time


@dataclass
class HiddenOutcomeTier(SpikingTier):
    """Hidden neurons on a constant current, followed by the last layer."""

    _dictionary: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    _dictionary_of: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    _dictionary_options: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def _inputs(self, seen: Pass) -> Tensor:
        return seen.inputs[self.index]

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        currents = seen.currents[self.index]
        boundaries, trains = self._outcomes(self.layer.neurons, currents.dtype)
        if len(boundaries) > 1:
            boundaries, trains = boundaries[rows], trains[rows]
        weight = self.stack.layers[self.index + 1].linear.weight.detach()[:, rows].contiguous()
        readout, options = self.readout(seen)
        some = currents[:, rows].contiguous()
        return lif_outcome_costs(some, shifts, boundaries, trains, weight, *readout, **options)

    def _outcomes(self, neurons: LIF, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tabulate the spike trains of constant currents; again only after a learned leak or threshold has moved."""
        now, known = constants(neurons), self._dictionary_of
        options = {"num_steps": neurons.num_steps, "dtype": dtype, **dynamics(neurons)}
        moved = known is None or not all(map(torch.equal, known, now))
        if self._dictionary is None or moved or options != self._dictionary_options:
            beta, threshold = (value.cpu() for value in now)
            boundaries, trains = lif_outcome_dictionary(beta, threshold, **options)
            device = now[0].device
            self._dictionary = boundaries.to(device), trains.to(device)
            self._dictionary_of = now[0].clone(), now[1].clone()
            self._dictionary_options = options
        return self._dictionary


@dataclass
class ReadoutOutcomeTier(SpikingTier):
    """The last layer's neurons."""

    def _inputs(self, seen: Pass) -> Tensor:
        return over_time(seen.inputs[self.index], self.layer.neurons).transpose(0, 1)

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        readout, options = self.readout(seen)
        return lif_direct_costs(shifts, *readout, **options)[rows]
