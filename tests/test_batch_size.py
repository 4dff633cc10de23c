"""Lightning's batch size finder with one process, with several, and with other strategies."""

import pytest
from pytorch_lightning.callbacks import BatchSizeFinder
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_polystep import batch_size
from lightning_polystep.batch_size import allow_batch_size_finder
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, loader, polystep, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The `batch_idx` argument")


class Sized(Boring):
    def __init__(self, size=2):
        super().__init__(polystep)
        self.batch_size = size

    def train_dataloader(self):
        return loader(64 // self.batch_size, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return loader(64 // self.batch_size, self.batch_size)

    test_dataloader = val_dataloader


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_callback_finds_a_size_and_the_fit_is_one_of_that_size(tmp_path, mode):
    module = Sized()
    finder = BatchSizeFinder(mode=mode, max_trials=3, steps_per_trial=2)
    run = trainer(tmp_path, callbacks=[finder], limit_val_batches=0)
    run.fit(module)
    assert module.batch_size == finder.optimal_batch_size > 2
    assert run.global_step == 64 // module.batch_size
    assert not list(tmp_path.glob(".scale*"))


def test_the_tuner_finds_a_size_and_leaves_the_parameters_alone(tmp_path):
    module, run = Sized(), trainer(tmp_path, limit_val_batches=0)
    before = parameters_sha256(module)
    assert Tuner(run).scale_batch_size(module, max_trials=3, steps_per_trial=2) == module.batch_size > 2
    assert parameters_sha256(module) == before
    run.fit(module)
    assert run.global_step == 64 // module.batch_size


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_callback_in_an_evaluation(tmp_path, stage):
    module = Sized()
    getattr(trainer(tmp_path, callbacks=[BatchSizeFinder(max_trials=2, steps_per_trial=1)]), stage)(
        module, verbose=False
    )
    assert module.batch_size > 2


def test_several_processes_are_refused_as_before(tmp_path):
    run = trainer(tmp_path, devices=2)
    with pytest.raises(ValueError, match="not supported with distributed strategies"):
        Tuner(run).scale_batch_size(Sized())


def test_other_strategies_are_left_alone(tmp_path):
    with pytest.raises(ValueError, match="not supported with distributed strategies"):
        Tuner(trainer(tmp_path, strategy="ddp", devices=1)).scale_batch_size(Sized())
    with pytest.raises(MisconfigurationException, match="dataloaders passed directly"):
        Tuner(trainer(tmp_path, strategy="auto")).scale_batch_size(Boring(), loader())


def test_allowing_again_changes_nothing(tmp_path):
    before = BatchSizeFinder.setup, batch_size.tuning._check_scale_batch_size_configuration
    allow_batch_size_finder()
    assert before == (BatchSizeFinder.setup, batch_size.tuning._check_scale_batch_size_configuration)
    run = trainer(tmp_path)
    batch_size.tuning._check_scale_batch_size_configuration(run)
    assert run._accelerator_connector.is_distributed, "only the finder sees it otherwise"
