r"""Score changes: each candidate's spike train is simulated, and travels on only where it differs from the incumbent's.

For hidden LIF layers that outcomes do not take: those on a current that changes over time (spikes, or an input coded in
time) and those with further hidden layers behind. Shifts of a pre-activation are added to the captured current, so
nothing before the layer runs again; equal trains are followed once per sample and neuron, from their first difference
on; samples without a difference cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_polystep.kernels import lif_train_costs
from lightning_polystep.scoring.stack import Pass
from lightning_polystep.scoring.stack_tier import SpikingTier, constants_of_each, dynamics


@dataclass
class IncrementalTier(SpikingTier):
    """Hidden neurons on any current, any number of layers before the last."""

    name = "incremental"
    default_candidates = 16384

    def _inputs(self, seen: Pass) -> Tensor:
        return _time_second(seen.inputs[self.index])

    def _costs(self, seen: Pass, rows: Tensor, shifts: Tensor) -> Tensor:
        hidden = range(self.index, len(self.stack.layers) - 1)
        first = _time_second(seen.currents[self.index])
        constants = [constants_of_each(self.stack.layers[i].neurons, seen.currents[i]) for i in hidden]
        betas, thresholds = [beta for beta, _ in constants], [threshold for _, threshold in constants]
        weights = [self.stack.layers[i + 1].linear.weight.detach() for i in hidden]
        currents = [first[..., rows].contiguous(), *(self.currents(seen, i) for i in hidden[1:])]
        betas[0], thresholds[0], weights[0] = betas[0][rows], thresholds[0][rows], weights[0][:, rows].contiguous()
        readout, options = self.readout(seen)
        options |= {f"hidden_{name}": option for name, option in dynamics(self.layer.neurons).items()}
        return lif_train_costs(shifts, currents, betas, thresholds, weights, *readout, **options)


def _time_second(values: Tensor) -> Tensor:
    """Return (T, N, ...) as (N, T, ...), and what is constant, (N, ...), as (N, 1, ...)."""
    return values.transpose(0, 1) if values.ndim == 3 else values[:, None]
