"""The strategy with modules that Lightning optimises automatically: counters, hooks, limits, callbacks."""

import csv
import itertools
import json
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.callbacks.weight_averaging import EMAWeightAveraging
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_polystep import PolyStepStrategy
from lightning_polystep.cli import main
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import BATCH, Boring, Busy, CountingLogger, loader, polystep, separable, spiking, trainer

# --- an ordinary module -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy_run(tmp_path_factory):
    """Eight epochs of eight batches of a module that does everything at once."""
    module, logger, radii = Busy(), CountingLogger(), []

    class Radii(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            radii.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(
        tmp_path_factory.mktemp("busy"), max_epochs=8, logger=logger, log_every_n_steps=1, callbacks=[Radii()]
    )
    with pytest.warns() as caught:
        run.fit(module, loader(shuffle=True), loader())
    return module, run, logger, radii, caught


def test_ordinary_module_loss_falls(busy_run):
    module, _, _, _, _ = busy_run
    losses = torch.stack(module.losses)
    assert losses[-8:].mean() < 0.6 * losses[:8].mean()
    assert torch.isfinite(losses).all()


def test_every_counter_of_the_user_advances_once_per_batch(busy_run):
    module, run, _, _, _ = busy_run
    assert run.global_step == run.fit_loop.total_batch_idx + 1 == 64
    assert (module.steps, len(module.losses)) == (64, 64)
    assert module.notes == {"nested": [set(range(1, 65))]}
    assert module.net[1].num_batches_tracked == 64
    assert float(module.batches_counted.compute()) == 64


def test_every_metric_arrives_once_per_batch(busy_run):
    module, _, logger, _, _ = busy_run
    assert logger.experiment.calls == {"inner": 64}
    assert len(logger.history["by_hand"]) == len(logger.history["loss_step"]) == 64
    assert logger.history["loss_step"] == pytest.approx(torch.stack(module.losses).tolist())
    assert logger.history["loss_epoch"] == pytest.approx(torch.stack(module.losses).reshape(8, 8).mean(1).tolist())
    assert len(logger.history["accuracy"]) == len(logger.history["val_loss"]) == 8
    assert logger.history["accuracy"][-1] > 0.8


def test_the_figures_of_the_optimizer_are_logged_once_per_step(busy_run):
    _, _, logger, _, _ = busy_run
    names = (
        "candidates",
        "cost_spread",
        "effective_vertices",
        "marginal_error",
        "flat_rows",
        "step_norm",
        "skipped",
    )
    assert {name: len(logger.history[f"polystep/{name}"]) for name in names} == dict.fromkeys(names, 64)
    assert all(norm > 0 for norm in logger.history["polystep/step_norm"])
    assert set(logger.history["polystep/skipped"]) == {0.0}


def test_no_parameter_has_a_gradient_and_autograd_is_back(busy_run):
    module, _, _, _, _ = busy_run
    assert [name for name, p in module.named_parameters() if p.grad is not None] == []
    assert all(p.requires_grad for p in module.parameters())
    assert torch.is_grad_enabled()


def test_batch_norm_statistics_are_those_of_the_commit_passes(busy_run):
    module, _, _, _, _ = busy_run
    norm = module.net[1]
    inputs = module.net[0](separable().tensors[0])
    assert torch.isfinite(norm.running_mean).all()
    # Running averages lag behind the moving weights; candidates' batches would not leave them this close.
    torch.testing.assert_close(norm.running_mean, inputs.mean(0), atol=0.35, rtol=0.3)


def test_one_warning_names_the_replaced_optimizer_and_what_is_ignored(busy_run):
    *_, caught = busy_run
    messages = [str(warning.message) for warning in caught if "PolyStep" in str(warning.message)]
    assert len(messages) == 1
    for word in ("Adam", "betas", "eps", "weight_decay", "ratio", "lightning_polystep.PolyStep"):
        assert word in messages[0]


def test_a_replaced_optimizers_schedule_scales_the_step_radius_epoch_by_epoch(busy_run):
    _, _, _, radii, _ = busy_run
    assert radii == pytest.approx([0.1 * 0.5**epoch for epoch in range(1, 9)])  # at the end of epochs: the next one's


# --- what configure_optimizers may return -----------------------------------------------------------------------------


def scheduled(module, **config):
    optimizer = polystep(module, lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **config}}


def as_lists(module):
    optimizer = polystep(module, lr=0.2)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


@pytest.mark.parametrize(
    ("make", "first", "last"),
    [
        (None, 0.1, 0.1),
        (polystep, 0.1, 0.1),
        (as_lists, 0.2, 0.2 * 0.5**2),
        (scheduled, 0.2, 0.2 * 0.5**2),
        (lambda module: scheduled(module, interval="step"), 0.2, 0.2 * 0.5**8),
        (lambda module: scheduled(module, interval="step", frequency=2), 0.2, 0.2 * 0.5**4),
    ],
    ids=["None", "PolyStep", "lists", "dict", "dict by step", "dict every second step"],
)
def test_accepted_returns_of_configure_optimizers(tmp_path, make, first, last):
    module = Boring(make)
    radii = []

    class Radii(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            radii.append(optimizer.param_groups[0]["lr"])

    run = trainer(tmp_path, max_epochs=2, callbacks=[Radii()])
    run.fit(module, loader(batches=4))
    assert run.global_step == 8
    assert radii[0] == pytest.approx(first)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(last)
    assert min(module.losses[4:]) < module.losses[0]


def test_plateau_schedulers_follow_the_monitored_metric(tmp_path):
    def make(module):
        optimizer = polystep(module, lr=1e-6)  # nothing improves
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    run = trainer(tmp_path, max_epochs=3)
    run.fit(Boring(make), loader(batches=2))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(2.5e-7)


def test_warm_up_in_an_overridden_optimizer_step_acts_on_the_radius(tmp_path):
    radii = []

    class WarmUp(Boring):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (self.trainer.global_step + 1) / 4
            radii.append(optimizer.param_groups[0]["lr"])
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    run = trainer(tmp_path)
    run.fit(WarmUp(polystep), loader(batches=4))
    assert radii == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


# --- limits and accumulation ------------------------------------------------------------------------------------------


def test_accumulation_makes_one_step_per_window_and_one_for_the_rest(tmp_path):
    module = Boring(polystep)
    run = trainer(tmp_path, accumulate_grad_batches=3)
    run.fit(module, loader(batches=8))
    progress = run.optimizers[0].progress
    assert run.global_step == progress.step == 3
    assert len(module.losses) == 8
    # Every micro-batch was scored: the two full windows and the rest.
    per_batch = progress.candidates / 8
    assert progress.samples == 8 * per_batch * BATCH
    assert per_batch == int(per_batch) > 0


def full_space(module):
    # In the full space, candidates do not depend on which inputs were seen when they were proposed.
    return polystep(module, subspace="full", rank=None, particle_dim=2, lr=0.05)


def test_two_micro_batches_equal_one_batch_of_double_size(tmp_path):
    data = separable(32)
    results = []
    for batch_size, accumulate in ((16, 1), (8, 2)):
        module = Boring(full_space)
        run = trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=3)
        run.fit(module, DataLoader(data, batch_size=batch_size))
        assert run.global_step == 6
        results.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)
    start = torch.nn.utils.parameters_to_vector(Boring().parameters())
    assert (results[0] - start).norm() > 0.05


def test_accumulation_scheduler_changes_the_window_between_epochs(tmp_path):
    steps = []

    class Steps(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            steps.append(trainer.global_step)

    run = trainer(tmp_path, max_epochs=3, callbacks=[Steps(), GradientAccumulationScheduler({0: 4, 1: 2, 2: 1})])
    run.fit(Boring(polystep), loader(batches=4))
    assert steps == [1, 3, 7]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 3, "max_epochs": -1}, 3),
        ({"max_steps": 11, "max_epochs": -1}, 11),
        ({"limit_train_batches": 2, "max_epochs": 2}, 4),
        ({"limit_train_batches": 0.5}, 4),
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
        ({"fast_dev_run": 2}, 2),
        ({"fast_dev_run": True}, 1),
        ({"val_check_interval": 4}, 8),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, 16),
        ({"num_sanity_val_steps": 0}, 8),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 16),
        ({"deterministic": True}, 8),
        ({"inference_mode": False}, 8),
        ({"barebones": True, "logger": None, "enable_checkpointing": None}, 8),
    ],
    ids=str,
)
def test_limits_of_the_trainer(tmp_path, options, steps):
    options = dict(options)
    if options.get("barebones"):
        options |= {"enable_progress_bar": None, "enable_model_summary": None}

    class Quiet(Boring):
        def log(self, name, *args, **kwargs):
            """Under barebones Lightning warns of every log; ours must not be among them."""
            if self.trainer.barebones:
                assert not name.startswith("polystep/")
            else:
                super().log(name, *args, **kwargs)

    run, module = trainer(tmp_path, **options), Quiet(polystep)
    run.fit(module, loader())
    assert run.global_step == run.optimizers[0].progress.step == len(module.losses) == steps


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_precisions(tmp_path, precision):
    module = Boring(polystep)
    run = trainer(tmp_path, precision=precision, max_epochs=4)
    run.fit(module, loader())
    dtype = {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert sum(module.losses[-8:]) < sum(module.losses[:8])


def test_a_gradient_scaler_has_nothing_to_scale(tmp_path):
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    module = Boring(polystep)
    run = trainer(tmp_path, plugins=[plugin], max_epochs=2)
    run.fit(module, loader())
    assert run.global_step == 16
    assert sum(module.losses[8:]) < sum(module.losses[:8])


# --- callbacks and the profiler ---------------------------------------------------------------------------------------


def test_early_stopping(tmp_path):
    module = Boring(lambda m: polystep(m, lr=0.0))
    run = trainer(tmp_path, max_epochs=20, callbacks=[EarlyStopping("val_loss", patience=2)])
    run.fit(module, loader(batches=2))
    assert run.current_epoch == 3


def test_checkpoints_by_step_and_by_metric(tmp_path):
    by_step = ModelCheckpoint(tmp_path / "step", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    by_metric = ModelCheckpoint(tmp_path / "metric", monitor="val_loss", filename="{epoch}")
    module = Boring(polystep)
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[by_step, by_metric])
    run.fit(module, loader(batches=6))
    assert sorted(path.stem for path in (tmp_path / "step").iterdir()) == ["step=12", "step=3", "step=6", "step=9"]
    assert by_metric.best_model_path
    saved = torch.load(by_metric.best_model_path, weights_only=True)
    assert saved["global_step"] in {6, 12}
    last = torch.load(tmp_path / "step" / "step=12.ckpt", weights_only=True)["state_dict"]
    # A checkpoint holds the parameters after the step that it is named after.
    assert all(torch.equal(last[name], value) for name, value in module.state_dict().items())


def test_learning_rate_monitor_shows_the_radius(tmp_path):
    logger = CountingLogger()
    run = trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[LearningRateMonitor("epoch")])
    run.fit(Boring(scheduled), loader(batches=2))
    assert logger.history["lr-PolyStep"] == pytest.approx([0.2, 0.1])


def test_stochastic_weight_averaging(tmp_path):
    module = Boring(polystep)
    norm = torch.nn.BatchNorm1d(2)
    module.net.append(norm)  # the averaging callback runs one more epoch for batch normalisation
    run = trainer(
        tmp_path,
        max_epochs=4,
        callbacks=[StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)],
    )
    run.fit(module, loader(batches=4))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
    assert math.isfinite(module.losses[-1])
    assert sum(module.losses[-4:]) < sum(module.losses[:4])


def test_weight_averaging(tmp_path):
    module = Boring(polystep)
    callback = EMAWeightAveraging(decay=0.5)
    run = trainer(tmp_path, max_epochs=2, callbacks=[callback])
    run.fit(module, loader(batches=4))
    assert callback._average_model is not None
    assert sum(module.losses[4:]) < sum(module.losses[:4])


def test_profiler_has_a_row_for_every_verb(tmp_path):
    run = trainer(tmp_path, profiler="simple")
    run.fit(Boring(polystep), loader(batches=2))
    durations = run.profiler.recorded_durations
    for verb in ("observe", "propose", "score", "transport", "move"):
        assert len(durations[f"[PolyStep]{verb}"]) >= 2, verb
    assert "[PolyStep]score" in run.profiler.summary()


# --- the rest of the lifecycle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_first", [True, False], ids=["after fit", "alone"])
def test_validate_test_and_predict_need_no_process_group(tmp_path, fit_first):
    run, module = trainer(tmp_path, max_epochs=3), Boring(polystep)
    if fit_first:
        run.fit(module, loader())
    before = parameters_sha256(module)
    (validation,) = run.validate(module, loader(), verbose=False)
    (test,) = run.test(module, loader(), verbose=False)
    assert validation["val_loss"] == pytest.approx(test["test_loss"])
    predictions = torch.cat(run.predict(module, loader()))
    assert len(predictions) == 64
    assert parameters_sha256(module) == before
    assert torch.is_grad_enabled()
    assert not torch.distributed.is_initialized()


def test_validation_inside_and_outside_of_fit_agree(tmp_path):
    run, module = trainer(tmp_path, max_epochs=2), Boring(polystep)
    run.fit(module, loader(), loader(batches=3))
    inside = float(run.callback_metrics["val_loss"])
    (outside,) = run.validate(module, loader(batches=3), verbose=False)
    assert outside["val_loss"] == pytest.approx(inside)


def test_the_callback_list_is_given_back(tmp_path):
    class Mine(pl.Callback):
        seen = None

        def on_train_start(self, trainer, pl_module):
            self.seen = list(trainer.callbacks)

    mine = Mine()
    run = trainer(tmp_path, callbacks=[mine])
    before = list(run.callbacks)
    run.fit(Boring(polystep), loader(batches=2))
    assert run.callbacks == before
    assert len(mine.seen) == len(before) + 2


def test_fit_twice_with_the_same_trainer(tmp_path):
    run, module = trainer(tmp_path, max_epochs=1), Boring(polystep)
    run.fit(module, loader(batches=4))
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(batches=4))
    assert run.global_step == 8
    assert len(module.losses) == 8
    assert torch.is_grad_enabled()
    assert sum(module.losses[4:]) < sum(module.losses[:4])


def test_two_trainers_do_not_influence_each_other(tmp_path):
    hashes = []
    for _ in range(2):
        module = Boring(polystep, dropout=0.2)
        trainer(tmp_path, max_epochs=2).fit(module, loader())
        hashes.append(parameters_sha256(module))
    assert hashes[0] == hashes[1]


def test_the_noise_of_a_step_leaves_the_users_generator_alone(tmp_path):
    def drawn_after(module, **options):
        torch.manual_seed(5)
        # The loader's own draws, which do not come from the global generator under PolyStep, stay out of it.
        data = DataLoader(separable(2 * BATCH), batch_size=BATCH, generator=torch.Generator())
        trainer(tmp_path, **options).fit(module, data)
        return torch.randn(3)

    plain = Boring(lambda m: torch.optim.SGD(m.parameters(), lr=0.0), dropout=0.0)
    assert torch.equal(drawn_after(Boring(polystep, dropout=0.5)), drawn_after(plain, strategy="auto"))


@pytest.mark.parametrize("error", [ValueError("the user's own"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_in_the_step_gives_autograd_and_everything_else_back(tmp_path, error):
    class Failing(Boring):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise error
            return super().training_step(batch, batch_idx)

    run, module = trainer(tmp_path), Failing(polystep)
    callbacks = list(run.callbacks)
    with pytest.raises((ValueError, KeyboardInterrupt, SystemExit)):
        run.fit(module, loader(batches=4))
    assert torch.is_grad_enabled()
    assert run.callbacks == callbacks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert module.log.__func__ is pl.LightningModule.log
    module.loss(next(iter(loader()))).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_an_exception_in_a_probe_gives_everything_back(tmp_path):
    class Fragile(Boring):
        calls = itertools.count(1)  # which probes do not put back

        def loss(self, batch):
            if next(self.calls) > 4:
                raise ArithmeticError("too often")
            return super().loss(batch)

    module = Fragile(polystep)
    logger = CountingLogger()
    run = trainer(tmp_path, strategy=PolyStepStrategy(evaluation="loop", show_plan=False), logger=logger)
    with pytest.raises(ArithmeticError, match="too often"):
        run.fit(module, loader(batches=4))
    assert run.loggers == [logger]
    assert "log" not in vars(module)
    assert torch.is_grad_enabled()
    start = Boring().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())


def test_a_step_that_returns_none_is_skipped(tmp_path):
    class Skips(Boring):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    module, before = Skips(polystep), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.append(parameters_sha256(pl_module))

    run = trainer(tmp_path, callbacks=[Watch()])
    with pytest.warns(UserWarning, match="returned `None`"):
        run.fit(module, loader(batches=4))
    moved = [a != b for a, b in zip(before, [*before[1:], parameters_sha256(module)], strict=True)]
    assert moved == [True, False, True, True]
    assert run.global_step == 4


def test_a_batch_with_a_non_finite_loss_moves_nothing_and_is_counted(tmp_path):
    class Overflows(Boring):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx in {1, 2} else 1.0)

    module, before = Overflows(polystep), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.append(parameters_sha256(pl_module))

    logger = CountingLogger()
    run = trainer(tmp_path, callbacks=[Watch()], logger=logger, log_every_n_steps=1)
    with pytest.warns(UserWarning, match="not finite") as caught:
        run.fit(module, loader(batches=4))
    assert len([w for w in caught if "not finite" in str(w.message)]) == 1
    moved = [a != b for a, b in zip(before, [*before[1:], parameters_sha256(module)], strict=True)]
    assert moved == [True, False, False, True]
    assert logger.history["polystep/skipped"][-1] == 2.0


def test_a_loss_that_is_a_metric_trains(tmp_path):
    class OnMetric(Boring):
        def __init__(self):
            super().__init__(polystep)
            self.accuracy = MulticlassAccuracy(2, average="micro")

        def loss(self, batch):
            inputs, labels = batch
            return 1 - self.accuracy(self.net(inputs), labels)

    module = OnMetric()
    run = trainer(tmp_path, max_epochs=6)
    run.fit(module, loader(batches=4, batch_size=16))
    assert sum(module.losses[-4:]) < sum(module.losses[:4])


def test_tape_and_loop_train_alike(tmp_path):
    results = []
    for evaluation in ("tape", "loop"):
        module = Boring(polystep, dropout=0.2)
        strategy = PolyStepStrategy(evaluation=evaluation, show_plan=False)
        trainer(tmp_path, strategy=strategy).fit(module, loader(batches=4))
        results.append(module.losses)
    assert torch.stack(results[0]).tolist() == pytest.approx(torch.stack(results[1]).tolist(), abs=1e-3)


@pytest.mark.parametrize("matters", [False, True])
def test_item_in_the_step_trains_by_the_loop_where_it_matters_and_the_plan_says_why(tmp_path, matters):
    class Item(Boring):
        def loss(self, batch):
            loss = super().loss(batch)
            self.last = loss.item()
            return loss * (1 + self.last) if matters else loss

    run = trainer(tmp_path)
    run.fit(Item(polystep), loader(batches=2))
    assignments = run.strategy.engines[0].plan.assignments
    assert {assignment.tier.name for assignment in assignments} == {"loop" if matters else "tape"}
    assert all(("Python reads numbers" in assignment.note) == matters for assignment in assignments)


def test_the_plan_is_printed_once_unless_switched_off(tmp_path, capfd):
    trainer(tmp_path, strategy=PolyStepStrategy(), max_epochs=2).fit(Boring(polystep), loader(batches=2))
    assert capfd.readouterr().err.count("PolyStep plan") == 1
    trainer(tmp_path, strategy=PolyStepStrategy(show_plan=False)).fit(Boring(polystep), loader(batches=2))
    assert "PolyStep plan" not in capfd.readouterr().err


def test_overridden_hooks_without_effect_are_named(tmp_path):
    class Overrides(Boring):
        def backward(self, loss, *args, **kwargs):
            raise AssertionError("there is no backward pass")

        def configure_gradient_clipping(self, *args, **kwargs):
            """Lightning calls this although there is nothing to clip."""

    with pytest.warns(UserWarning, match="no effect under PolyStep") as caught:
        trainer(tmp_path).fit(Overrides(polystep), loader(batches=2))
    text = " ".join(str(w.message) for w in caught)
    assert "Overrides.backward" in text
    assert "Overrides.configure_gradient_clipping" in text


def test_optimizer_options_and_candidates_of_the_strategy_reach_the_optimizer(tmp_path):
    strategy = PolyStepStrategy(optimizer_options={"lr": 0.3, "seed": 7}, max_candidates=64, show_plan=False)
    run = trainer(tmp_path, strategy=strategy)
    run.fit(Boring(), loader(batches=2))
    optimizer = run.optimizers[0]
    assert (optimizer.param_groups[0]["lr"], optimizer.seed) == (0.3, 7)
    assert optimizer.progress.candidates <= 2 * 64


def test_seed_everything_decides_the_run(tmp_path):
    def final(seed):
        pl.seed_everything(seed, verbose=False)
        module = Boring()
        trainer(tmp_path).fit(module, loader(batches=3, shuffle=True))
        return parameters_sha256(module)

    assert final(1) == final(1) != final(2)


# --- outcomes ---------------------------------------------------------------------------------------------------------


def plan_of(run):
    return run.strategy.engines[0].plan


def tiers_of(run):
    return {assignment.tier.name for assignment in plan_of(run).assignments}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_outcomes_and_loop_train_alike(tmp_path, accumulate):
    """Also with accumulation, for which Lightning divides the loss; eight batches leave a window that is not full."""
    results, tiers = [], []
    for evaluation in ("auto", "loop"):
        module = spiking(Boring)()
        strategy = PolyStepStrategy(evaluation=evaluation, max_candidates=256, show_plan=False)
        run = trainer(tmp_path, strategy=strategy, accumulate_grad_batches=accumulate)
        run.fit(module, loader(batches=8))
        results.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
        tiers.append(tiers_of(run))
    assert tiers == [{"outcome"}, {"loop"}]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_a_step_that_changes_later_is_rescored_with_one_warning(tmp_path):
    class Changing(spiking(Boring)):
        def loss(self, batch):
            return super().loss(batch) * (1.0 if self.global_step < 3 else 2.0)

    run = trainer(tmp_path)
    with pytest.warns(
        UserWarning,
        match="The network is scored as any other from now on, which is slower: the step returned a loss of",
    ):
        run.fit(Changing(), loader(batches=6))
    assert tiers_of(run) == {"tape"}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_trains_and_only_full_ones_by_outcomes(tmp_path, precision):
    class Plain(spiking(Boring, torch.float32)):
        def loss(self, batch):
            inputs, labels = batch
            return self.criterion(self.network(inputs), labels)

    module, run = Plain(), trainer(tmp_path, precision=precision, max_epochs=3)
    run.fit(module, loader(batches=8))
    assert torch.isfinite(torch.stack(module.losses)).all()
    assert sum(module.losses[-8:]) < sum(module.losses[:8])
    full = precision in {"32-true", "64-true"}
    assert (tiers_of(run) == {"outcome"}) == full
    assert all(("not as part of a stack" in assignment.note) != full for assignment in plan_of(run).assignments)


def test_digits_learn_by_outcomes(tmp_path, monkeypatch):
    """The configuration that ships, as far as 30 steps."""
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).resolve().parent.parent / "configs" / "digits_spiking.yaml"
    options = ["max_steps=30", "limit_val_batches=1", "limit_test_batches=1", "log_every_n_steps=1"]
    options += ["enable_progress_bar=false", "enable_model_summary=false"]
    cli = main(["fit", "--config", str(config), *(f"--trainer.{option}" for option in options)])
    folder = Path(cli.trainer.log_dir)
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert {row["tier"] for row in record["plan"]} == {"outcome"}
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
