"""MAX-SAT through the Trainer: it gets far, and goes on to the same bits after a checkpoint."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules import RandomKSAT
from lightning_polystep import PolyStep, PolyStepStrategy
from lightning_polystep.in_turn import IN_TURN
from lightning_polystep.results import parameters_sha256
from lightning_polystep.schedules import Exponential
from models import MaxSAT
from tests.helpers.ranks import fit


class Annealed(MaxSAT):
    def configure_optimizers(self):
        epsilon = Exponential(0.25, 0.04, steps=19)
        return PolyStep(self.parameters(), lr=1.0, transport="sample", epsilon=epsilon, seed=0)

    def on_train_epoch_end(self):
        (engine,) = self.trainer.strategy.engines
        self.report = {"notes": [each.note for each in engine.plan.assignments]}


def trainer(folder, epochs, **options):
    return pl.Trainer(
        strategy=PolyStepStrategy(show_plan=False),
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def data():
    return RandomKSAT(variables=400, steps_per_epoch=5)


def test_it_gets_far_and_a_resumed_run_ends_at_the_same_bits(tmp_path):
    whole = Annealed()
    run = trainer(tmp_path / "whole", 4)
    run.fit(whole, data())
    reached = float(run.callback_metrics["val/satisfied"])
    assert reached > 0.995
    (metrics,) = run.test(whole, data(), verbose=False)
    assert metrics["test/satisfied"] == pytest.approx(reached)

    trainer(tmp_path / "part", 2).fit(part := Annealed(), data())
    path = tmp_path / "part.ckpt"
    part.trainer.save_checkpoint(path)
    resumed = Annealed()
    trainer(tmp_path / "rest", 4).fit(resumed, data(), ckpt_path=path)
    assert parameters_sha256(resumed) == parameters_sha256(whole)
    assert torch.equal(resumed.objective.best, whole.objective.best)


def annealing():
    return Annealed(), data(), {"max_epochs": 2}


@pytest.mark.distributed
def test_two_processes_walk_the_same_way_and_the_plan_says_that_they_share_nothing(tmp_path):
    (alone,), both = (fit(annealing, ranks, tmp_path, start_method="spawn") for ranks in (1, 2))
    assert len(set(alone.hashes)) == 10
    assert [rank.hashes for rank in both] == [alone.hashes] * 2
    assert all(IN_TURN in note for rank in both for note in rank.report["notes"])
    assert all(rank.report["notes"] for rank in both)


def test_it_needs_a_formula(tmp_path):
    with pytest.raises(ValueError, match="no formula yet"):
        MaxSAT().training_step(None, 0)
    with pytest.raises(ValueError, match="data module with a formula"):
        trainer(tmp_path, 1).fit(Annealed(), [0], [0])
