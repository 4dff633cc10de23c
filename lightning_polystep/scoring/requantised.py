"""Score: how candidates of quantised rows shift their pre-activations."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_polystep.functional.quantisers import per_output
from lightning_polystep.layers import QuantLinear
from lightning_polystep.scoring.feedforward import codes_of_rows

# Weights of so many bytes stay in the second-level cache from one element-wise operation to the next.
_CACHED_BYTES = 2**20


def requantised_shifts(linear: QuantLinear, inputs: Tensor, rows: Tensor, reach: Tensor, steps: Tensor) -> Tensor:
    r"""Return by how much each candidate of some rows shifts their pre-activations.

    .. math:: s_{jnv} = a_j \sum_d x_{nd} \, (q_j(w_j + r_j \delta_v) - q_j(w_j))_d + r_j \delta_{v b}

    where :math:`q_j` rounds to whole multiples of the row's frozen scale :math:`a_j` and b is the bias, which stays
    float. What rounding does depends on where latent weights are, so no two rows shift alike. The sum is one of whole
    numbers where the inputs are, as those behind signs and steps: a shift that brings such a pre-activation to 0 is
    then minus that pre-activation, to the bit, and what steps at 0 steps as in the layer itself.

    Args:
        linear: The layer.
        inputs: x, what it multiplies its weights with, (N, D), less their centre where the bias moves along.
        rows: j, (R,).
        reach: r, of these rows, (R,).
        steps: :math:`\delta`, displacements of latent weights, and of the bias if there is one, (V, D) or (V, D + 1).

    Returns:
        s, (R, N, V). A row's numbers do not depend on the other rows asked for.
    """
    latent, features = linear.weight.detach()[rows], linear.in_features
    before, scale = codes_of_rows(linear, rows, latent)
    shifts = inputs.new_empty(len(rows), len(inputs), len(steps))
    at_once = max(1, _CACHED_BYTES // (steps.numel() * steps.element_size()))
    for few in torch.arange(len(rows), device=rows.device).split(at_once):
        moved = latent[few, None] + reach[few, None, None] * steps[:, :features]
        changes = codes_of_rows(linear, rows[few], moved)[0].sub_(before[few, None])
        for place, change in zip(few.tolist(), changes, strict=True):
            torch.mm(inputs, change.T, out=shifts[place])
    shifts *= per_output(scale, 3, shifts.dtype)
    if steps.shape[1] > features:
        shifts += (reach[:, None] * steps[:, features])[:, None]
    return shifts
