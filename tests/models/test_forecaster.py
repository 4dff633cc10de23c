"""The forecaster: what it logs, and that its network is scored as a stack."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules import HourlySeries
from lightning_polystep import PolyStep, PolyStepStrategy
from models import Forecaster, StaircaseMLP


class Trained(Forecaster):
    def configure_optimizers(self):
        return PolyStep(self.parameters(), lr=0.1, seed=0)


@pytest.fixture
def data():
    return HourlySeries(
        lookback=12, horizon=4, train_hours=400, val_hours=100, test_hours=100, batch_size=128, drop_last=True
    )


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    strategy = PolyStepStrategy(show_plan=False)
    return pl.Trainer(strategy=strategy, enable_checkpointing=False, **quiet, **options)


def test_it_learns_more_than_persistence_and_logs_both(data):
    model = Trained(StaircaseMLP((36, 16, 4)))
    fit = trainer(max_epochs=12)
    fit.fit(model, data)
    figures = fit.callback_metrics
    assert float(figures["val/mse"]) < 0.5 * float(figures["val/persistence"])
    assert {row.tier.name for row in fit.strategy.engines[0].plan.assignments} <= {"outcome", "incremental"}


def test_the_errors_are_those_of_the_forecasts(data):
    model = Forecaster(StaircaseMLP((36, 16, 4)))
    data.setup()
    windows, ahead = data.test_set.images, data.test_set.labels
    fit = trainer()
    (figures,) = fit.test(model, data, verbose=False)
    with torch.no_grad():
        errors = model(windows) - ahead
    assert figures["test/mse"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert figures["test/mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    assert figures["test/persistence"] == pytest.approx(float(ahead.square().mean()), rel=1e-5)
