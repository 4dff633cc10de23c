"""One line of configuration logs how the layers behave, and leaves no hook behind."""

from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_polystep import PolyStepStrategy
from lightning_polystep.callbacks import LayerMetrics
from lightning_polystep.cli import main
from lightning_polystep.layers import QuantLinear, Sign
from lightning_polystep.metrics import LayerWatch
from tests.helpers.boring import BATCH, FEATURES, Boring, CountingLogger, loader, polystep, separable, spiking, trainer

LOGGED = ("spike_rate/network.2", "dead_neurons/network.4", "saturated_neurons/network.2", "synaptic_operations")


def hooks(module):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


def test_a_fit_logs_every_validation_and_the_values_are_those_of_the_data(tmp_path):
    logger, module = CountingLogger(), spiking(Boring)()
    run = trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[LayerMetrics()])
    run.fit(module, loader(batches=2), loader(batches=3))
    assert {name: len(logger.history[f"val/{name}"]) for name in LOGGED} == dict.fromkeys(LOGGED, 2)
    inputs = separable(3 * BATCH).tensors[0].double()
    with torch.no_grad(), LayerWatch(module) as watch:
        module.network(inputs)
        watch.count_samples(len(inputs))
    last = {name: values[-1] for name, values in logger.history.items() if name.startswith("val/")}
    assert last == pytest.approx({f"val/{name}": float(value) for name, value in watch.compute().items()})
    assert hooks(module) == 0
    assert not any(name.startswith("test/") for name in logger.history)


def test_validate_and_test_without_a_fit(tmp_path):
    module = spiking(Boring)()
    run = trainer(tmp_path, callbacks=[LayerMetrics()])
    (validated,) = run.validate(module, loader(batches=2), verbose=False)
    (tested,) = run.test(module, loader(batches=2), verbose=False)
    assert {f"val/{name}" for name in LOGGED} <= set(validated)
    assert {name: tested[f"test/{name}"] for name in LOGGED} == {name: validated[f"val/{name}"] for name in LOGGED}
    assert validated["val/dense_operations"] == FEATURES * 8 + 6 * 8 * 2
    assert hooks(module) == 0


def test_it_measures_with_any_strategy_and_trains_alike_without_it(tmp_path):
    def trained(callbacks, strategy):
        module = spiking(Boring)()
        run = trainer(tmp_path, strategy=strategy, callbacks=callbacks, max_epochs=2)
        run.fit(module, loader(batches=4), loader(batches=2))
        return [p.detach().clone() for p in module.parameters()], run.callback_metrics

    plain, _ = trained([], PolyStepStrategy(show_plan=False))
    watched, metrics = trained([LayerMetrics()], PolyStepStrategy(show_plan=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert "val/spike_rate/network.2" in metrics
    (validated,) = trainer(tmp_path, strategy="auto", callbacks=[LayerMetrics()]).validate(
        spiking(Boring)(), loader(batches=1), verbose=False
    )
    assert "val/spike_rate/network.2" in validated


def test_stages_and_operations_can_be_left_out(tmp_path):
    module = spiking(Boring)()
    run = trainer(tmp_path, callbacks=[LayerMetrics(on_validation=False, synaptic_operations=False)])
    (validated,) = run.validate(module, loader(batches=1), verbose=False)
    (tested,) = run.test(module, loader(batches=1), verbose=False)
    assert not any(name.startswith("val/") for name in validated)
    assert "test/spike_rate/network.2" in tested
    assert not any("operations" in name for name in tested)


def test_the_sanity_check_adds_no_hooks_and_an_error_leaves_none(tmp_path):
    seen = []

    class Stops(spiking(Boring)):
        def validation_step(self, batch, batch_idx):
            seen.append((self.trainer.sanity_checking, hooks(self) > 0))
            if not self.trainer.sanity_checking:
                raise RuntimeError("stop")

    module = Stops()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, callbacks=[LayerMetrics()], num_sanity_val_steps=1).fit(
            module, loader(batches=1), loader(batches=1)
        )
    assert seen == [(True, False), (False, True)]
    assert hooks(module) == 0


def test_training_steps_are_not_measured(tmp_path):
    counted = []

    class Counts(spiking(Boring)):
        def training_step(self, batch, batch_idx):
            counted.append(sum(isinstance(m, LayerMetrics) and m._watch is not None for m in self.trainer.callbacks))
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, callbacks=[LayerMetrics()], max_epochs=2, val_check_interval=2).fit(
        Counts(), loader(batches=4), loader(batches=1)
    )
    assert counted
    assert not any(counted)


def test_a_batch_without_a_size_leaves_the_operations_out(tmp_path):
    class NoBatch(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 2), Sign())

        def validation_step(self, batch, batch_idx):
            self.net(torch.ones(1, 3))

    batches = torch.utils.data.DataLoader([object()] * 2, batch_size=None)
    (logged,) = trainer(tmp_path, strategy="auto", callbacks=[LayerMetrics()]).validate(
        NoBatch(), batches, verbose=False
    )
    assert set(logged) == {"val/levels_used/net.1", "val/level_entropy/net.1"}


@pytest.mark.filterwarnings("ignore:validate runs the network with its first weights")
def test_one_line_of_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: lightning_polystep.callbacks.LayerMetrics\n", encoding="utf-8"
    )
    cli = main(
        [
            "validate",
            "--config=more.yaml",
            "--model=models.Classifier",
            "--model.network=models.SpikingMLP",
            "--model.network.sizes=[64,8,10]",
            "--data=datamodules.Digits",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert "val/spike_rate/network.2" in cli.trainer.callback_metrics


class Quantised(Boring):
    def __init__(self):
        super().__init__(polystep)
        self.net = nn.Sequential(QuantLinear(FEATURES, 6, weight_format="ternary"), Sign(), nn.Linear(6, 2))


@pytest.mark.parametrize("log_per_block", [False, True])
def test_the_strategy_logs_blocks_on_request(tmp_path, log_per_block):
    logger, module, codes = CountingLogger(), Quantised(), []

    class Codes(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            codes.append(pl_module.net[0].weight_codes().clone())

        on_train_end = lambda self, trainer, pl_module: self.on_train_batch_start(trainer, pl_module, None, 0)  # noqa: E731

    strategy = PolyStepStrategy(show_plan=False, log_per_block=log_per_block)
    run = trainer(tmp_path, strategy=strategy, logger=logger, log_every_n_steps=1, callbacks=[Codes()], max_epochs=2)
    run.fit(module, loader(batches=4))
    names = {name for name in logger.history if name.startswith(("polystep/null_candidates", "polystep/flip_rate"))}
    if not log_per_block:
        assert not names
        return
    assert names == {"polystep/null_candidates/net.0", "polystep/null_candidates/net.2", "polystep/flip_rate/net.0"}
    expected = [float((a != b).float().mean()) for a, b in pairwise(codes)]
    assert logger.history["polystep/flip_rate/net.0"] == pytest.approx(expected)
    assert max(expected) > 0
    # Ternary weights: some candidates leave every code as it was. The float layer behind notices every candidate.
    assert max(logger.history["polystep/null_candidates/net.0"]) > 0.1
    assert max(logger.history["polystep/null_candidates/net.2"]) == 0.0


def test_the_strategy_logs_changed_pairs_of_a_stack(tmp_path):
    logger, module = CountingLogger(), spiking(Boring)()
    strategy = PolyStepStrategy(show_plan=False, log_per_block=True)
    trainer(tmp_path, strategy=strategy, logger=logger, log_every_n_steps=1).fit(module, loader(batches=4))
    for name in ("network.1", "network.3"):
        shares = logger.history[f"polystep/changed_pairs/{name}"]
        assert len(shares) == 4
        assert all(0 < share < 1 for share in shares)


class Foreign(pl.LightningModule):
    """Neurons of another library, or no hard layer at all."""

    def __init__(self, *layers):
        super().__init__()
        self.network = nn.Sequential(*layers)


def test_it_says_which_neurons_it_does_not_measure():
    snntorch = pytest.importorskip("snntorch")
    callback = LayerMetrics()
    with pytest.warns(UserWarning, match=r"no spikes of network.1 \(Leaky\), .* convert the network"):
        callback.on_test_start(None, Foreign(nn.Linear(2, 2), snntorch.Leaky(0.9, init_hidden=True)))
    callback.on_test_end(None, None)


def test_it_says_when_there_is_nothing_to_measure_and_only_once():
    callback, module = LayerMetrics(), Foreign(nn.Linear(2, 2), nn.ReLU())
    with pytest.warns(UserWarning, match="no hard layer of this package"):
        callback.on_test_start(None, module)
    callback.on_test_start(None, module)
    callback.on_test_end(None, None)
