"""Stop, save, load and resume."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, ByHand, loader, polystep, trainer

REPLACED = pytest.mark.filterwarnings("ignore:configure_optimizers returned .*, which needs gradients")


pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")


class Noisy(Boring):
    """Everything that a resume could get wrong: dropout, BatchNorm, momentum, input statistics."""

    def __init__(self, optimizer=polystep):
        super().__init__(optimizer, dropout=0.2)
        self.net.insert(1, nn.BatchNorm1d(6))
        torch.manual_seed(torch.seed())  # nothing may hang on the global generator


class ManualNoisy(ByHand, Noisy):
    pass


def scheduled(module):
    optimizer = polystep(module, lr=0.2)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def scheduled_by_step(module):
    optimizer = polystep(module, lr=0.2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def adam(module):
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def two_groups(module):
    return torch.optim.SGD([{"params": module.net[0].parameters(), "lr": 1.0}, {"params": module.net[1:].parameters()}])


def save_to(folder, **options):
    return ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", **options)


@REPLACED
@pytest.mark.parametrize("kind", [Noisy, ManualNoisy])
@pytest.mark.parametrize("make", [polystep, None, scheduled, scheduled_by_step, adam, two_groups])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, kind, make):
    data = loader(batches=5, shuffle=True)
    pl.seed_everything(3, verbose=False)  # PolyStep's seed where configure_optimizers names none
    whole = kind(make)
    run = trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[save_to(tmp_path / "saved")])
    run.fit(whole, data)
    pl.seed_everything(99, verbose=False)  # the resumed process has its own
    resumed = kind(make)
    again = trainer(tmp_path, max_epochs=4)
    # The order of the batches is Lightning's: its sampler takes the seed of the process.
    pl.seed_everything(3, verbose=False)
    torch.manual_seed(12345)
    again.fit(resumed, data, ckpt_path=tmp_path / "saved" / "epoch=1.ckpt")
    assert again.global_step == run.global_step == 20
    assert len(resumed.losses) == len(whole.losses) / 2
    assert parameters_sha256(resumed) == parameters_sha256(whole)
    optimizers = run.optimizers[0], again.optimizers[0]
    assert optimizers[0].progress == optimizers[1].progress
    rates = [[config.scheduler.get_last_lr() for config in each.lr_scheduler_configs] for each in (run, again)]
    assert rates[0] == rates[1]


def test_without_the_optimizers_state_the_runs_differ(tmp_path):
    """The test above can fail: weights alone do not make the runs equal."""
    data = loader(batches=5)
    whole = Noisy()
    saving = save_to(tmp_path, save_weights_only=True)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saving]).fit(whole, data)
    resumed = Noisy()
    resumed.load_state_dict(torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"])
    trainer(tmp_path, max_epochs=1).fit(resumed, data)
    assert parameters_sha256(resumed) != parameters_sha256(whole)


@REPLACED
def test_the_radius_of_a_replaced_optimizers_schedule_is_restored(tmp_path):
    radii = []

    class Radii(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            radii.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[save_to(tmp_path / "saved"), Radii()])
    run.fit(Boring(adam), loader(batches=2))
    again = trainer(tmp_path, max_epochs=4, callbacks=[Radii()])
    again.fit(Boring(adam), loader(batches=2), ckpt_path=tmp_path / "saved" / "epoch=1.ckpt")
    assert radii == pytest.approx([0.05, 0.025, 0.0125, 0.00625])  # the next epoch's
    (config,) = again.lr_scheduler_configs
    assert config.scheduler.get_last_lr() == pytest.approx([1e-3 * 0.5**4])


def test_a_checkpoint_loads_with_weights_only_and_without_the_package(tmp_path):
    module = Boring(polystep)
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[save_to(tmp_path)])
    run.fit(module, loader(batches=2))
    path = tmp_path / "epoch=0.ckpt"
    saved = torch.load(path, weights_only=True)
    assert list(saved["state_dict"]) == [name for name, _ in module.named_parameters()]
    assert "lightning_polystep" not in repr(saved["callbacks"])
    (state,) = saved["optimizer_states"]
    assert state["polystep"]["format"] == 2
    assert state["polystep"]["progress"]["step"] == 2
    plain = Boring.load_from_checkpoint(path, weights_only=True)
    assert parameters_sha256(plain) == parameters_sha256(module)
    # The weights go on under ordinary gradient descent.
    plain.make_optimizer = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)
    trainer(tmp_path, strategy="auto").fit(plain, loader(batches=2))
    assert parameters_sha256(plain) != parameters_sha256(module)


@REPLACED
@pytest.mark.parametrize("make", [polystep, lambda m: torch.optim.Adam(m.parameters()), None])
def test_a_checkpoint_of_adam_is_refused_with_the_way_out(tmp_path, make):
    module = Boring(lambda m: torch.optim.Adam(m.parameters()))
    options = {"strategy": "auto", "enable_checkpointing": True, "callbacks": [save_to(tmp_path)]}
    trainer(tmp_path, **options).fit(module, loader(batches=2))
    path = tmp_path / "epoch=0.ckpt"
    run = trainer(tmp_path, max_epochs=2)
    with pytest.raises(ValueError, match=r"another optimizer: load only the weights .*load_from_checkpoint\(path\)"):
        run.fit(Boring(make), loader(batches=2), ckpt_path=path)
    assert torch.is_grad_enabled()
    warm = Boring.load_from_checkpoint(path, weights_only=True)
    warm.make_optimizer = make
    trainer(tmp_path).fit(warm, loader(batches=2))
    assert parameters_sha256(warm) != parameters_sha256(module)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    module = Boring(polystep)
    run = trainer(tmp_path)
    run.fit(module, loader(batches=2))
    run.save_checkpoint(tmp_path / "now.ckpt")
    saved = torch.load(tmp_path / "now.ckpt", weights_only=True)
    saved["optimizer_states"][0]["polystep"]["format"] = 99
    torch.save(saved, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match="state format 99, this version reads 2"):
        trainer(tmp_path, max_epochs=2).fit(Boring(polystep), loader(batches=2), ckpt_path=tmp_path / "later.ckpt")


def test_testing_the_best_checkpoint_of_a_fit(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    run, module = trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[best]), Boring(polystep)
    run.fit(module, loader(), loader())
    (metrics,) = run.test(module, loader(), ckpt_path="best", weights_only=True, verbose=False)
    assert metrics["test_loss"] == pytest.approx(float(best.best_model_score))


def test_what_an_accumulation_window_has_gathered_is_saved_with_the_rest(tmp_path):
    run = trainer(tmp_path, accumulate_grad_batches=4, limit_train_batches=8)
    path = tmp_path / "middle.ckpt"

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                trainer.save_checkpoint(path)

    run.callbacks.append(Save())
    run.fit(Boring(polystep), loader(batches=8))
    saved = torch.load(path, weights_only=True)
    own = saved["optimizer_states"][0]["polystep"]
    progress = own["progress"]
    assert own["pending"]["weight"] == 2
    assert own["pending"]["blocks"].keys() == {"net.0", "net.3"}
    assert (saved["global_step"], progress["step"], progress["micro_batch"]) == (1, 1, 2)
