"""Keep autograd off in every hook of a fit; Lightning turns it on again when its loop starts."""

from __future__ import annotations

import torch

from lightning_polystep.host import Callback, pl


class AutogradOff(Callback):
    """The strategy's own callback: first in line, so that later callbacks and the module start without autograd."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn autograd off after the loop has turned it on."""
        del trainer, pl_module
        torch.set_grad_enabled(False)
