"""Fused operators, most of which score candidates: each a folder with a plain-torch reference and one file per device.

``POLYSTEP_KERNELS`` in {reference, cpu, triton} overrides the choice by device.
"""

from lightning_polystep.kernels.lif_direct_costs import lif_direct_costs
from lightning_polystep.kernels.lif_outcome_costs import lif_outcome_costs
from lightning_polystep.kernels.lif_outcomes import lif_outcome_dictionary
from lightning_polystep.kernels.lif_spikes import lif_spikes
from lightning_polystep.kernels.lif_train_costs import lif_train_costs
from lightning_polystep.kernels.relu_direct_costs import relu_direct_costs
from lightning_polystep.kernels.relu_grid_costs import relu_grid_costs
from lightning_polystep.kernels.route_outcome_costs import route_outcome_costs
from lightning_polystep.kernels.score_direct_costs import score_direct_costs
from lightning_polystep.kernels.step_outcome_costs import step_outcome_costs
from lightning_polystep.kernels.step_outcomes import step_function_dictionary
from lightning_polystep.kernels.two_level_losses import two_level_losses
from lightning_polystep.kernels.unit_change_losses import unit_change_losses

__all__ = [
    "lif_direct_costs",
    "lif_outcome_costs",
    "lif_outcome_dictionary",
    "lif_spikes",
    "lif_train_costs",
    "relu_direct_costs",
    "relu_grid_costs",
    "route_outcome_costs",
    "score_direct_costs",
    "step_function_dictionary",
    "step_outcome_costs",
    "two_level_losses",
    "unit_change_losses",
]
