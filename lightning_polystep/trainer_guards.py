"""Every refusal that concerns the Trainer or a LightningModule, with its message."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature

WRONG_NAMESPACE = (
    "lightning_polystep works with the Trainer of pytorch_lightning, but this one comes from lightning.pytorch: "
    "use `import pytorch_lightning as pl` for the Trainer and for the modules."
)

RAW_BACKWARD = (
    "loss.backward() was called inside training_step, but there is no autograd graph under PolyStep: call "
    "self.manual_backward(loss), or opt.step(closure) with a closure that returns the loss."
)


def check_fit(trainer: pl.Trainer, module: pl.LightningModule, *, sync_batchnorm: bool) -> None:
    """Refuse at fit start what cannot work without gradients.

    Raises:
        MisconfigurationException: One sentence that says what to change.
    """
    rules = [
        (
            bool(trainer.gradient_clip_val),
            "Trainer(gradient_clip_val=...) clips gradients, and PolyStep has none: leave it out; the step radius `lr` "
            "bounds every step.",
        ),
        (
            bool(trainer._detect_anomaly),
            "Trainer(detect_anomaly=True) inspects autograd, which PolyStep turns off: leave it out; batches with a "
            "non-finite loss are skipped and counted in polystep/skipped.",
        ),
        (
            sync_batchnorm,
            "Trainer(sync_batchnorm=True) synchronises inside forward, which candidates must not do: leave it out.",
        ),
        (
            is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True),
            "training_step(dataloader_iter) would consume one batch per candidate: take `batch` instead.",
        ),
    ]
    for applies, message in rules:
        if applies:
            raise MisconfigurationException(message)
    for hook in ("backward", "configure_gradient_clipping"):
        if is_overridden(hook, module):
            rank_zero_warn(f"{type(module).__name__}.{hook} has no effect under PolyStep: there are no gradients.")


def check_world(devices: int, nodes: int) -> None:
    """Refuse more processes than this version can run.

    Raises:
        MisconfigurationException: Saying what to set.
    """
    if devices * nodes > 1:
        msg = f"The polystep strategy runs on one device in this version, not {devices} x {nodes}: set devices=1."
        raise MisconfigurationException(msg)


def check_replaceable(optimizer: object) -> None:
    """Refuse optimizers whose step needs gradients in the middle.

    Raises:
        MisconfigurationException: Saying what to return instead.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        msg = (
            "LBFGS evaluates gradients inside its step, which cannot be replaced faithfully: return "
            "lightning_polystep.PolyStep(self.parameters()) from configure_optimizers, or None for its defaults."
        )
        raise MisconfigurationException(msg)


def wrong_namespace(*_args: object, **_kwargs: object) -> None:
    """Stand in for the strategy in the registry of ``lightning.pytorch``.

    Raises:
        MisconfigurationException: Always, naming the right import.
    """
    raise MisconfigurationException(WRONG_NAMESPACE)


def register_refusal() -> None:
    """Make ``lightning.pytorch.Trainer(strategy="polystep")`` fail with the right import, if that package is loaded."""
    other = sys.modules.get("lightning.pytorch.strategies")
    if other is not None and "polystep" not in other.StrategyRegistry:
        other.StrategyRegistry.register("polystep", wrong_namespace, description=WRONG_NAMESPACE)
