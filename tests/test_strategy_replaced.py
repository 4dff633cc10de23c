"""Optimizers put in the place of others while a fit runs, and iterators that end: nothing ends it in silence."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerStatus
from torch.utils.data import DataLoader

from lightning_polystep import PolyStep
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, BoringByHand, loader, polystep, separable, trainer
from tests.helpers.resume import Hashes

REPLACED = pytest.mark.filterwarnings("ignore:configure_optimizers returned .*, which needs gradients")


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=1e-3)


class Replace(pl.Callback):
    """Puts another optimizer in the place of the first, at a hook and an epoch."""

    def __init__(self, make, hook="on_train_start", how="trainer", epoch=0):
        self.make, self.how, self.epoch = make, how, epoch
        setattr(self, hook, self.replace)

    def replace(self, trainer, pl_module, *_args):
        if trainer.current_epoch != self.epoch or self.make is None:
            return
        optimizer, self.make = self.make(pl_module), None
        if self.how == "in place":
            trainer.optimizers[0] = optimizer
        else:
            (trainer if self.how == "trainer" else trainer.strategy).optimizers = [optimizer]


def fitted(tmp_path, module, callbacks=(), **options):
    run = trainer(tmp_path, callbacks=list(callbacks), **{"max_epochs": 2, **options})
    run.fit(module, loader())
    assert run.state.status == TrainerStatus.FINISHED
    return run, parameters_sha256(module)


@REPLACED
@pytest.mark.parametrize("kind", [Boring, BoringByHand])
@pytest.mark.parametrize("how", ["trainer", "strategy", "in place"])
@pytest.mark.parametrize("make", [polystep, adam], ids=["PolyStep", "Adam"])
def test_an_optimizer_put_in_at_the_start_trains_as_if_returned(tmp_path, kind, how, make):
    expected_run, expected = fitted(tmp_path, kind(make))
    run, found = fitted(tmp_path, kind(lambda m: polystep(m, lr=0.7)), [Replace(make, how=how)])
    assert run.global_step == expected_run.global_step == 16
    assert type(run.optimizers[0]) is PolyStep
    assert run.optimizers[0].progress.step == 16
    assert found == expected


@REPLACED
@pytest.mark.parametrize(
    "hook", ["on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_optimizer_put_in_at_any_hook_trains_from_there(tmp_path, hook, accumulate):
    seen, ours = Hashes(), polystep
    callbacks = [Replace(lambda m: ours(m, lr=0.5), hook, epoch=1), seen]
    run, _ = fitted(tmp_path, Boring(polystep), callbacks, max_epochs=3, accumulate_grad_batches=accumulate)
    assert run.global_step == 24 // accumulate
    # The first hash is that of the start where the first batch makes no step.
    assert len(set(seen.seen)) == 24 // accumulate + (accumulate > 1)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5


@REPLACED
def test_a_replaced_optimizer_is_saved_and_restored(tmp_path):
    run, _ = fitted(tmp_path, Boring(polystep), [Replace(lambda m: polystep(m, lr=0.5))])
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert saved["optimizer_states"][0]["polystep"]["progress"]["step"] == 16


def test_saving_before_a_replaced_optimizer_has_made_a_step(tmp_path):
    class Save(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    run, _ = fitted(tmp_path, Boring(polystep), [Replace(lambda m: polystep(m, lr=0.5)), Save()], max_epochs=1)
    assert run.global_step == 8
    assert (tmp_path / "a.ckpt").is_file()


def test_a_module_may_replace_it_in_its_own_step(tmp_path):
    class Phases(BoringByHand):
        """Goes on with a smaller radius in the middle of an epoch."""

        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                self.trainer.optimizers = [polystep(self, lr=0.01)]
            super().training_step(batch, batch_idx)

    seen = Hashes()
    run, _ = fitted(tmp_path, Phases(polystep), [seen], max_epochs=1)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.01
    assert len(set(seen.seen)) >= 7, "at most the batch that replaced it may have moved nothing"


# --- iterators that end -----------------------------------------------------------------------------------------------


class Taking(Boring):
    """Takes from an iterator in one of the steps."""

    def __init__(self, stage, length, *, manual=False):
        super().__init__(polystep)
        self.automatic_optimization = not manual
        self.stage, self.source = stage, iter(range(length))

    def take(self, stage):
        if stage == self.stage:
            next(self.source)

    def training_step(self, batch, batch_idx):
        self.take("commit" if torch.is_grad_enabled() else "training")
        if self.automatic_optimization:
            return self.loss(batch)
        optimizer = self.optimizers()

        def closure():
            self.take("closure")
            return self.loss(batch)

        return optimizer.step(closure)

    def validation_step(self, batch, batch_idx):
        self.take("validation")
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.take("test")

    def predict_step(self, batch, batch_idx):
        self.take("predict")
        return batch_idx


@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize(("stage", "manual"), [("training", False), ("training", True), ("closure", True)])
def test_an_iterator_that_ends_in_a_training_step_is_an_error(tmp_path, stage, manual, length):
    with pytest.raises(RuntimeError, match=r"StopIteration was raised in .*take what the step needs from the batch"):
        fitted(tmp_path, Taking(stage, length, manual=manual))


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_an_iterator_that_ends_elsewhere_is_an_error_too(tmp_path, stage):
    run, module = trainer(tmp_path, num_sanity_val_steps=0), Taking(stage, 1)
    call = {"validation": run.validate, "test": run.test, "predict": run.predict}[stage]
    with pytest.raises(RuntimeError, match=f"StopIteration was raised in {stage}_step"):
        call(module, loader())


def test_a_resume_on_less_data_is_explained(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    class Endless(torch.utils.data.IterableDataset):
        """Knows no length."""

        def __init__(self, samples):
            self.samples = samples

        def __iter__(self):
            return iter(separable(self.samples))

    fitted_on = trainer(tmp_path, callbacks=[Save()])
    fitted_on.fit(Boring(polystep), DataLoader(Endless(64), 8))
    with pytest.raises(RuntimeError, match=r"ended after 3 of the 6 batches .* that the checkpoint has trained on"):
        trainer(tmp_path, max_epochs=2).fit(Boring(polystep), DataLoader(Endless(24), 8), ckpt_path=tmp_path / "a.ckpt")
