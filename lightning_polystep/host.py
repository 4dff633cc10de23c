"""What this package uses of Lightning, from that of its two packages which this process uses.

No other module imports Lightning. Both lists are the same, name by name, and a type checker reads the first.
"""

from typing import TYPE_CHECKING

from lightning_polystep.namespaces import PYTORCH_LIGHTNING, choose

if TYPE_CHECKING or choose() == PYTORCH_LIGHTNING:
    import pytorch_lightning as pl
    from lightning_fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
    from lightning_fabric.strategies.registry import _StrategyRegistry
    from lightning_fabric.utilities.cloud_io import get_filesystem
    from lightning_fabric.utilities.data import _set_sampler_epoch
    from lightning_fabric.utilities.distributed import _destroy_dist_connection
    from lightning_fabric.utilities.optimizer import _optimizers_to_device
    from lightning_fabric.utilities.types import _PATH, _Stateful
    from pytorch_lightning import LightningDataModule, LightningModule
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ModelCheckpoint
    from pytorch_lightning.core.optimizer import _MockOptimizer, do_nothing_closure
    from pytorch_lightning.loggers.logger import DummyLogger
    from pytorch_lightning.overrides.distributed import _sync_module_states
    from pytorch_lightning.plugins import Precision
    from pytorch_lightning.plugins.io.wrapper import _WrappingCheckpointIO
    from pytorch_lightning.strategies import DDPStrategy
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
    from pytorch_lightning.trainer.call import _interrupt
    from pytorch_lightning.trainer.states import RunningStage, TrainerFn
    from pytorch_lightning.tuner import tuning
    from pytorch_lightning.utilities.data import _is_dataloader_shuffled, extract_batch_size
    from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
    from pytorch_lightning.utilities.model_helpers import is_overridden
    from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
    from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
    from pytorch_lightning.utilities.types import STEP_OUTPUT
else:
    import lightning.pytorch as pl
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
    from lightning.fabric.strategies.registry import _StrategyRegistry
    from lightning.fabric.utilities.cloud_io import get_filesystem
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from lightning.fabric.utilities.distributed import _destroy_dist_connection
    from lightning.fabric.utilities.optimizer import _optimizers_to_device
    from lightning.fabric.utilities.types import _PATH, _Stateful
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ModelCheckpoint
    from lightning.pytorch.core.optimizer import _MockOptimizer, do_nothing_closure
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.overrides.distributed import _sync_module_states
    from lightning.pytorch.plugins import Precision
    from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
    from lightning.pytorch.trainer.call import _interrupt
    from lightning.pytorch.trainer.states import RunningStage, TrainerFn
    from lightning.pytorch.tuner import tuning
    from lightning.pytorch.utilities.data import _is_dataloader_shuffled, extract_batch_size
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
    from lightning.pytorch.utilities.types import STEP_OUTPUT

__all__ = [
    "STEP_OUTPUT",
    "_PATH",
    "Accelerator",
    "BatchSizeFinder",
    "Callback",
    "CheckpointIO",
    "ClusterEnvironment",
    "DDPStrategy",
    "DummyLogger",
    "LearningRateFinder",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "ModelCheckpoint",
    "Precision",
    "RunningStage",
    "SIGTERMException",
    "TorchCheckpointIO",
    "TrainerFn",
    "_MockOptimizer",
    "_MultiProcessingLauncher",
    "_Stateful",
    "_StrategyRegistry",
    "_WrappingCheckpointIO",
    "_destroy_dist_connection",
    "_interrupt",
    "_is_dataloader_shuffled",
    "_optimizers_to_device",
    "_set_sampler_epoch",
    "_sync_module_states",
    "do_nothing_closure",
    "extract_batch_size",
    "get_filesystem",
    "is_overridden",
    "is_param_in_hook_signature",
    "pl",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "tuning",
]
