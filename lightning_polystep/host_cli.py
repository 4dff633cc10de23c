"""As ``host``, Lightning's command line, which takes longer to import and needs jsonargparse."""

from typing import TYPE_CHECKING

from lightning_polystep.namespaces import PYTORCH_LIGHTNING, choose

if TYPE_CHECKING or choose() == PYTORCH_LIGHTNING:
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
else:
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

__all__ = ["LightningArgumentParser", "LightningCLI"]
