"""The layer of LIF neurons and the loss that end a network: what the kernels of every site before them share."""

from lightning_polystep.kernels.readout.reference import (
    LossKind,
    Readout,
    check_readout,
    fire_at,
    readout_losses,
    readout_scores,
    target_weights,
)

__all__ = ["LossKind", "Readout", "check_readout", "fire_at", "readout_losses", "readout_scores", "target_weights"]
