"""Keep autograd off in every hook of a fit; Lightning turns it on again when its loop starts."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class AutogradOff(Callback):
    """The strategy's own callback: first in line, so that later callbacks and the module start without autograd."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn autograd off after the loop has turned it on."""
        del trainer, pl_module
        torch.set_grad_enabled(False)
