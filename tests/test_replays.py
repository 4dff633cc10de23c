"""User code run again up to the backward call whose loss is wanted, and steps that return no loss."""

import itertools

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_polystep import Engine, PolyStep, PolyStepStrategy
from lightning_polystep.replays import Replays, loss_of
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, loader, polystep, trainer


def test_a_replay_stops_at_its_own_backward_call():
    replays, ran = Replays(), []

    def step():
        for number in range(3):
            ran.append(number)
            loss = torch.tensor(float(number))
            if not replays.passes(loss):
                replays.next_backward()

    with replays.step(step):
        replays.run()
        second = replays.at_backward(1)
        ran.clear()
        assert second() == 1.0
    assert ran == [0, 1]
    assert replays.backwards == 3
    replays.check_reached()


def test_a_replay_that_does_not_get_there_has_no_loss():
    replays = Replays()
    with replays.step(lambda: None):
        assert replays.at_backward(0)() is None
    with pytest.raises(RuntimeError, match="fewer manual_backward calls"):
        replays.check_reached()
    replays.check_reached()  # said once


def test_a_closure_takes_the_place_of_the_step_while_it_runs():
    replays = Replays()
    with replays.step(lambda: 1):
        assert replays.running
        with replays.closure(lambda: 2):
            assert replays.run() == 2
        assert replays.run() == 1
    assert not replays.running
    assert replays.returned()() == 1


@pytest.mark.parametrize(
    ("output", "loss"), [(3, 3), (None, None), ({"loss": 3}, 3), ({"loss": None}, None), ({}, None)]
)
def test_the_loss_of_an_output(output, loss):
    assert loss_of(output) == loss


# --- steps without a loss ---------------------------------------------------------------------------------------------


class Picky(Boring):
    """Has no loss where it is larger than that of the commit pass; ``how`` says so in one of the ways there are."""

    def __init__(self, how="None"):
        super().__init__(polystep)
        self.how = how
        self.automatic_optimization = how in {"None", "dict", "NaN"}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        good = bool(loss <= self.limit)
        if self.how == "NaN":
            return loss if good else loss * torch.nan
        if self.how == "dict":
            return {"loss": loss if good else None}
        if self.how == "None":
            return loss if good else None
        if self.how == "closure":
            return self.optimizers().step(lambda: self.loss(batch) if self.within(batch) else None)
        if self.how == "backward":
            if good:
                self.manual_backward(loss)
            return self.optimizers().step()
        raise AssertionError

    def within(self, batch):
        return bool(self.loss(batch) <= self.limit)

    def on_train_batch_start(self, batch, batch_idx):
        self.limit = self.loss(batch)


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("how", ["None", "dict", "closure", "backward"])
def test_a_candidate_without_a_loss_is_one_whose_loss_is_not_finite(tmp_path, how, evaluation):
    def fitted(module):
        strategy = PolyStepStrategy(evaluation=evaluation, show_plan=False)
        run = trainer(tmp_path, strategy=strategy)
        run.fit(module, loader(batches=4))
        assert run.global_step == 4
        assert torch.nn.utils.parameters_to_vector(module.parameters()).isfinite().all()
        return parameters_sha256(module)

    assert fitted(Picky(how)) == fitted(Picky("NaN")) != parameters_sha256(Picky())


def test_an_engine_takes_no_loss_for_one_that_is_not_finite():
    hashes = []
    for missing in (None, torch.tensor(torch.nan)):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        engine = Engine(model, PolyStep(model.parameters(), seed=0), announce=None)
        x = torch.randn(8, 4)

        def closure(missing=missing, model=model, x=x):
            loss = model(x).square().mean()
            return missing if loss > 1.0 else loss

        for _ in range(5):
            engine.step(closure)
        hashes.append(parameters_sha256(model))
    assert hashes[0] == hashes[1]


@pytest.mark.filterwarnings("ignore:Each run of the training step that scores a candidate moves on")
def test_where_no_candidate_has_a_loss_nothing_moves():
    model = torch.nn.Linear(4, 1)
    engine = Engine(model, PolyStep(model.parameters(), seed=0), announce=None)
    before, calls = parameters_sha256(model), itertools.count()  # which probes do not put back

    def closure():
        return model(torch.ones(2, 4)).mean() if next(calls) == 0 else None

    engine.step(closure)
    assert parameters_sha256(model) == before


# --- where backward and steps may be called ---------------------------------------------------------------------------


class InHook(Boring):
    """Optimises in a hook after the step."""

    def __init__(self, how, hook):
        super().__init__(polystep)
        self.automatic_optimization = False
        self.how = how
        setattr(self, hook, self.optimise)

    def training_step(self, batch, batch_idx):
        self.batch = batch

    def optimise(self, *_args):
        if not hasattr(self, "batch"):
            return
        if self.how == "closure":
            self.optimizers().step(lambda: self.loss(self.batch))
        else:
            self.manual_backward(self.loss(self.batch))
            self.optimizers().step()


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_train_batch_start"])
def test_backward_in_a_hook_is_refused_with_the_way_out(tmp_path, hook):
    message = r"manual_backward was called outside training_step.*give opt\.step\(closure\) a closure"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, max_epochs=2).fit(InHook("backward", hook), loader(batches=2))


def test_a_closure_in_a_hook_trains_as_in_the_step(tmp_path):
    class InStep(Boring):
        def __init__(self):
            super().__init__(polystep)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().step(lambda: self.loss(batch))

    hashes = []
    for module in (InHook("closure", "on_train_batch_end"), InStep()):
        trainer(tmp_path, max_epochs=2).fit(module, loader(batches=4))
        hashes.append(parameters_sha256(module))
    assert hashes[0] == hashes[1] != parameters_sha256(Boring())
