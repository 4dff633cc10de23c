"""The strategy with modules that optimise by hand: every form of a manual step, one or two optimizers."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_polystep import PolyStepStrategy
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, CountingLogger, loader, polystep, spiking, trainer


class Manual(Boring):
    def __init__(self, optimizer=polystep, dropout=0.2):
        super().__init__(optimizer, dropout)
        self.automatic_optimization = False


class ByClosure(Manual):
    """The closure returns the loss."""

    def training_step(self, batch, batch_idx):
        def closure():
            loss = self.loss(batch)
            self.losses.append(loss.detach())
            self.log("loss", loss)
            return loss

        self.optimizers().step(closure)


class ByClosureWithBackward(Manual):
    """The closure is the one that torch's documentation shows."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            loss = self.loss(batch)
            self.losses.append(loss.detach())
            self.log("loss", loss)
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)


class ByBackward(Manual):
    """The classic form."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        self.log("loss", loss)
        self.manual_backward(loss)
        optimizer.step()


class ByBackwardAfterTheStep(Manual):
    """The classic form with the optimizer cleared at the end, and the loss returned."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.log("loss", loss)
        return {"loss": loss}


class Accumulating(Manual):
    """A step on every second batch."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        self.manual_backward(loss)
        if batch_idx % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()


FORMS = [ByClosure, ByClosureWithBackward, ByBackward, ByBackwardAfterTheStep]


@pytest.fixture(scope="module")
def automatic(tmp_path_factory):
    """The same training, left to Lightning."""
    module = Boring(polystep, dropout=0.2)
    run = trainer(tmp_path_factory.mktemp("automatic"), max_epochs=3)
    run.fit(module, loader())
    return parameters_sha256(module), run.optimizers[0].progress


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_automatic_optimisation_bit_for_bit(tmp_path, form, automatic):
    module, logger = form(), CountingLogger()
    run = trainer(tmp_path, max_epochs=3, logger=logger, log_every_n_steps=1)
    run.fit(module, loader())
    hashed, progress = automatic
    assert parameters_sha256(module) == hashed
    assert run.optimizers[0].progress == progress
    assert run.global_step == 24
    assert len(module.losses) == len(logger.history["loss"]) == len(logger.history["polystep/step_norm"]) == 24
    assert sum(module.losses[-8:]) < sum(module.losses[:8])
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("form", [ByClosure, ByBackward])
def test_both_tiers_take_manual_steps(tmp_path, form):
    losses = []
    for evaluation in ("tape", "loop"):
        module = form()
        strategy = PolyStepStrategy(evaluation=evaluation, show_plan=False)
        trainer(tmp_path, strategy=strategy).fit(module, loader(batches=4))
        losses.append(torch.stack(module.losses).tolist())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("form", [ByClosure, ByBackward])
def test_outcomes_take_manual_steps(tmp_path, form):
    results, tiers = [], []
    for evaluation in ("auto", "loop"):
        module = spiking(form)()
        strategy = PolyStepStrategy(evaluation=evaluation, max_candidates=256, show_plan=False)
        run = trainer(tmp_path, strategy=strategy)
        run.fit(module, loader(batches=4))
        results.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
        tiers.append({assignment.tier.name for assignment in run.strategy.engines[0].plan.assignments})
    assert tiers == [{"outcome"}, {"loop"}]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_manual_accumulation_equals_automatic_accumulation(tmp_path):
    modules = Accumulating(dropout=0.2), Boring(polystep, dropout=0.2)
    for module, accumulate in zip(modules, (1, 2), strict=True):
        run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
        run.fit(module, loader())
        assert run.global_step == 8
    assert parameters_sha256(modules[0]) == parameters_sha256(modules[1])
    one_by_one = Boring(polystep, dropout=0.2)
    trainer(tmp_path, max_epochs=2).fit(one_by_one, loader())
    assert parameters_sha256(one_by_one) != parameters_sha256(modules[0])


def test_a_sum_of_two_backward_calls_counts_both(tmp_path):
    """As with gradients, two backward calls before a step add up; their order must not matter."""

    class Halves(Manual):
        order = (slice(0, 4), slice(4, 8))

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for part in self.order:
                self.manual_backward(self.loss([tensor[part] for tensor in batch]))
            optimizer.step()

    def full_space(module):
        return polystep(module, subspace="full", rank=None, particle_dim=2, lr=0.05)

    whole = ByBackward(full_space, dropout=0.0)
    halves, reverse = Halves(full_space, dropout=0.0), Halves(full_space, dropout=0.0)
    reverse.order = Halves.order[::-1]
    for module in (whole, halves, reverse):
        trainer(tmp_path).fit(module, loader())
    expected = torch.nn.utils.parameters_to_vector(whole.parameters())
    for module in (halves, reverse):
        torch.testing.assert_close(
            torch.nn.utils.parameters_to_vector(module.parameters()), expected, atol=1e-5, rtol=1e-4
        )


class Gan(pl.LightningModule):
    """Two networks against each other, as in Lightning's own example."""

    def __init__(self, toggle):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.toggle = toggle
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.frozen_while = {"g": [], "d": []}
        self.moved = {"g": [], "d": []}

    def judge(self, inputs, real):
        target = torch.full((len(inputs), 1), float(real))
        return nn.functional.binary_cross_entropy_with_logits(self.discriminator(inputs), target)

    def one(self, name, optimizer, loss_of):
        before = parameters_sha256(self.generator), parameters_sha256(self.discriminator)
        if self.toggle:
            self.toggle_optimizer(optimizer)
        loss = loss_of()
        self.log(f"{name}_loss", loss)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.frozen_while[name].append(
            tuple(all(p.requires_grad for p in net.parameters()) for net in (self.generator, self.discriminator))
        )
        optimizer.step()
        if self.toggle:
            self.untoggle_optimizer(optimizer)
        after = parameters_sha256(self.generator), parameters_sha256(self.discriminator)
        self.moved[name].append(tuple(a != b for a, b in zip(before, after, strict=True)))

    def training_step(self, batch, batch_idx):
        real, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        noise = torch.randn(len(real), 2)
        self.one("g", optimizer_g, lambda: self.judge(self.generator(noise), real=True))
        fake = self.generator(noise)
        self.one("d", optimizer_d, lambda: self.judge(real, real=True) + self.judge(fake, real=False))

    def configure_optimizers(self):
        return polystep(self.generator), polystep(self.discriminator, lr=0.05)


@pytest.mark.parametrize("toggle", [True, False])
def test_two_optimizers_take_turns(tmp_path, toggle):
    module, logger = Gan(toggle), CountingLogger()
    run = trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(module, loader(batches=4))
    assert run.global_step == 16
    assert [optimizer.progress.step for optimizer in run.optimizers] == [8, 8]
    # Each step moves its own network and no other.
    assert module.moved == {"g": [(True, False)] * 8, "d": [(False, True)] * 8}
    assert module.frozen_while == (
        {"g": [(True, False)] * 8, "d": [(False, True)] * 8}
        if toggle
        else {"g": [(True, True)] * 8, "d": [(True, True)] * 8}
    )
    names = ["g_loss", "d_loss", "polystep/step_norm/0", "polystep/step_norm/1"]
    assert {name: len(logger.history[name]) for name in names} == dict.fromkeys(names, 8)
    assert all(p.requires_grad for p in module.parameters())


def test_toggling_changes_only_who_is_scored(tmp_path):
    """A frozen network is not probed, and its partner trains as before."""
    runs = []
    for toggle in (True, False):
        module = Gan(toggle)
        run = trainer(tmp_path)
        run.fit(module, loader(batches=4))
        runs.append(run)
    toggled, untoggled = ([optimizer.progress.candidates for optimizer in run.optimizers] for run in runs)
    assert all(0 < a < b for a, b in zip(toggled, untoggled, strict=True))


def test_toggle_model_as_a_context(tmp_path):
    class WithContext(Gan):
        def one(self, name, optimizer, loss_of):
            with optimizer.toggle_model():
                super().one(name, optimizer, loss_of)

    module = WithContext(toggle=False)
    run = trainer(tmp_path)
    run.fit(module, loader(batches=4))
    assert run.global_step == 8
    assert module.moved == {"g": [(True, False)] * 4, "d": [(False, True)] * 4}
    assert all(p.requires_grad for p in module.parameters())


class TwoGoals(pl.LightningModule):
    """Two numbers; the first optimizer's loss wants the first at 3, the second's drags it away with great force."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.second.weight)

    def training_step(self, batch, batch_idx):
        one = torch.ones(1, 1)
        goals = (
            lambda: (self.first(one) - 3).square().sum(),
            lambda: 100 * (self.first(one) + 3).square().sum() + (self.second(one) - 3).square().sum(),
        )
        for optimizer, goal in zip(self.optimizers(), goals, strict=True):
            optimizer.step(goal)

    def configure_optimizers(self):
        return [polystep(net, lr=0.1, epsilon=0.5) for net in (self.first, self.second)]


def test_a_closure_speaks_for_its_own_optimizer_alone(tmp_path):
    """Closures that only return their loss never clear anything, so nothing of one may reach the other."""
    module = TwoGoals()
    trainer(tmp_path, max_epochs=5).fit(module, loader())
    assert module.first.weight.item() > 1.5
    assert module.second.weight.item() > 1.5


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("where", ["after the step", "before the loss", "in the loss"])
def test_a_scheduler_stepped_by_hand_advances_once(tmp_path, where):
    """Wherever it stands: candidates run everything up to the backward call again."""

    class Scheduled(ByBackward):
        def loss(self, batch):
            if where == "in the loss" and self.trainer.training:
                self.lr_schedulers().step()
            return super().loss(batch)

        def training_step(self, batch, batch_idx):
            if where == "before the loss":
                self.lr_schedulers().step()
            super().training_step(batch, batch_idx)
            if where == "after the step":
                self.lr_schedulers().step()

    def make(module):
        optimizer = polystep(module, lr=0.2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]

    run = trainer(tmp_path)
    run.fit(Scheduled(make), loader(batches=4))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.9**4)


def test_a_replaced_optimizer_and_its_scheduler_stepped_by_hand(tmp_path):
    radii = []

    class Scheduled(ByClosure):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.lr_schedulers().step()
            radii.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def make(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="returned SGD"):
        run.fit(Scheduled(make), loader(batches=3))
    assert radii == pytest.approx([0.05, 0.025, 0.0125])  # as soon as the scheduler has stepped


def test_calls_in_the_wrong_place_are_explained(tmp_path):
    class Raw(Manual):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            loss.backward()
            self.optimizers().step()

    with pytest.raises(MisconfigurationException, match=r"loss\.backward\(\).*manual_backward") as raised:
        trainer(tmp_path).fit(Raw(), loader())
    assert "does not require grad" in str(raised.value.__cause__)
    assert torch.is_grad_enabled()


def test_raw_backward_in_a_closure_is_explained(tmp_path):
    class Raw(Manual):
        def training_step(self, batch, batch_idx):
            def closure():
                loss = self.loss(batch)
                loss.backward()
                return loss

            self.optimizers().step(closure)

    with pytest.raises(MisconfigurationException, match=r"loss\.backward\(\).*manual_backward"):
        trainer(tmp_path).fit(Raw(), loader())


def test_other_runtime_errors_of_the_step_pass_through(tmp_path):
    class Broken(Manual):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("something of the user's")

    with pytest.raises(RuntimeError, match="something of the user's"):
        trainer(tmp_path).fit(Broken(), loader())


def test_a_step_without_a_loss_moves_nothing(tmp_path):
    class NoLoss(Manual):
        def training_step(self, batch, batch_idx):
            self.optimizers().step()

    module = NoLoss()
    before = parameters_sha256(module)
    run = trainer(tmp_path)
    run.fit(module, loader(batches=2))
    assert parameters_sha256(module) == before
    assert run.global_step == 2


def test_a_closure_that_returns_nothing_is_explained(tmp_path):
    class NoLoss(Manual):
        def training_step(self, batch, batch_idx):
            self.optimizers().step(lambda: None)

    with pytest.raises(ValueError, match=r"returned NoneType as its loss: return a floating-point scalar tensor"):
        trainer(tmp_path).fit(NoLoss(), loader())


def test_a_backward_that_replays_do_not_reach_is_explained(tmp_path):
    class Moody(ByBackward):
        """Calls backward only the first time it sees a batch; a plain object hides that from the snapshots."""

        class Memory:
            seen = False

        def training_step(self, batch, batch_idx):
            if self.Memory.seen:
                return
            type(self).Memory.seen = True
            super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="fewer manual_backward calls"):
        trainer(tmp_path).fit(Moody(), loader())


def test_validation_and_checkpoints_of_a_manual_module(tmp_path):
    module = ByBackward()
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True)
    run.fit(module, loader(batches=4))
    (metrics,) = run.validate(module, verbose=False)
    assert metrics["val_loss"] == pytest.approx(float(run.callback_metrics["val_loss"]))
    saved = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["global_step"] == 8
    assert saved["optimizer_states"][0]["polystep"]["progress"]["step"] == 8
