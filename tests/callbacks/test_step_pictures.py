"""The landscape is that of the step which was made: same costs, weights and move."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("matplotlib")

from lightning_polystep import PolyStep
from lightning_polystep.baselines import SPSA
from lightning_polystep.callbacks import StepPictures
from lightning_polystep.layers import Sign

DRAW = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(24, 4, generator=DRAW), torch.randn(24, 1, generator=DRAW)


class Net(pl.LightningModule):
    def __init__(self, optimizer):
        super().__init__()
        self.first, self.sign, self.last = nn.Linear(4, 5), Sign(), nn.Linear(5, 1)
        self.optimizer = optimizer
        self.befores = []

    def on_before_optimizer_step(self, optimizer):
        self.befores.append(torch.cat([self.first.weight.data, self.first.bias.data[:, None]], 1).clone())

    def training_step(self, batch, batch_idx):
        return (self.last(self.sign(self.first(batch[0]))) - batch[1]).square().mean()

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def run(tmp_path, optimizer=lambda p: PolyStep(p, lr=0.2, momentum=0.0), epochs=1, **options):
    drawn = {}

    class Notes(StepPictures):
        def show(self, trainer, name, figure):
            drawn.setdefault(name, []).append(figure)
            super().show(trainer, name, figure)

    callback, module = Notes(**options), Net(optimizer)
    trainer = pl.Trainer(
        strategy="polystep",
        accelerator="cpu",
        logger=False,
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8))
    return drawn, callback, module


@pytest.mark.parametrize("maximize", [False, True])
def test_the_move_is_the_one_that_the_step_makes(tmp_path, maximize):
    def make(parameters):
        return PolyStep(parameters, lr=0.2, momentum=0.0, maximize=maximize)

    drawn, callback, module = run(tmp_path, make, block="first", row=3)
    look = callback._last
    assert look.name == "first, row 3, step 3"
    after = torch.cat([module.first.weight.data, module.first.bias.data[:, None]], 1)
    torch.testing.assert_close((after - module.befores[-1])[3].double(), look.move, rtol=1e-4, atol=1e-6)
    assert {path.stem for path in (tmp_path / "pictures").glob("*.png")} == {"landscape", "polytope", "steps"}
    assert look.costs.std() > 0
    assert len(look.costs) == len(look.displacements) == len(look.weights)
    assert drawn["landscape"][0].axes[0].get_title() == look.name


def test_costs_are_those_of_the_candidates_run_for_real(tmp_path):
    _, callback, module = run(tmp_path, lambda p: PolyStep(p, lr=1e-12, momentum=0.0), block="first", row=1)
    look = callback._last
    with torch.no_grad():
        for displacement, cost in zip(look.displacements.float(), look.costs, strict=True):
            module.first.weight[1] += displacement[:-1]
            module.first.bias[1] += displacement[-1]
            loss = module.training_step((INPUTS[16:], TARGETS[16:]), 0)
            module.first.weight[1] -= displacement[:-1]
            module.first.bias[1] -= displacement[-1]
            assert float(loss) == pytest.approx(float(cost), rel=1e-4)
        assert look.incumbent == pytest.approx(float(module.training_step((INPUTS[16:], TARGETS[16:]), 0)), rel=1e-4)


def test_figures_of_all_steps_are_kept(tmp_path):
    drawn, _, _ = run(tmp_path, epochs=4, every_n_epochs=2)
    assert len(drawn["steps"]) == 2
    lines = {axes.get_ylabel(): axes.lines[0] for axes in drawn["steps"][-1].axes}
    assert set(lines) == {"effective vertices", "flat rows", "cost spread", "step norm"}
    assert list(lines["flat rows"].get_xdata()) == list(range(1, 13))
    assert (np.asarray(lines["effective vertices"].get_ydata()) >= 1).all()


def test_the_row_of_the_widest_spread_unless_named(tmp_path):
    _, callback, _ = run(tmp_path)
    assert callback._last.name.startswith(("first, row", "last, row"))
    with pytest.warns(UserWarning, match="no block 'hidden' is probed; the plan names first, last"):
        run(tmp_path, block="hidden")


def test_another_optimizer_is_named_once(tmp_path):
    with pytest.warns(UserWarning, match="draws steps of PolyStep, and this is SPSA") as caught:
        drawn, _, _ = run(tmp_path, lambda p: SPSA(p, lr=0.01))
    assert sum("Notes:" in str(warning.message) for warning in caught) == 1
    assert drawn == {}
