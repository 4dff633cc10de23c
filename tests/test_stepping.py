"""Optimizer objects that user code holds: replaced ones train, unknown ones are refused."""

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import StepLR

from lightning_polystep import Engine, PolyStep
from lightning_polystep.results import parameters_sha256
from lightning_polystep.stepping import own_methods
from tests.helpers.boring import Boring, loader, polystep, trainer

REPLACED = pytest.mark.filterwarnings("ignore:configure_optimizers returned .*, which needs gradients")


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=1e-3)


class Own(Boring):
    """Keeps its optimizer in an attribute, and steps that."""

    def __init__(self, make=adam):
        super().__init__()
        self.automatic_optimization = False
        self.own = make(self)

    def configure_optimizers(self):
        return self.own

    def training_step(self, batch, batch_idx):
        self.own.zero_grad()
        self.manual_backward(self.loss(batch))
        self.own.step()


class OwnByClosure(Own):
    def training_step(self, batch, batch_idx):
        def closure():
            loss = self.loss(batch)
            self.own.zero_grad()
            self.manual_backward(loss)
            return loss

        self.own.step(closure)


class OwnByReturningClosure(Own):
    def training_step(self, batch, batch_idx):
        self.own.step(lambda: self.loss(batch))


class ThroughLightning(Own):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class WithoutLightning(Own):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class ByTheTrainer(Own):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        self.trainer.optimizers[0].step()
        self.trainer.strategy.optimizers[0].zero_grad()


class Scheduled(Own):
    """Its schedule acts on its own object, and must reach the step however the step is made."""

    def __init__(self, make=adam, *, own=True):
        super().__init__(make)
        self.steps_own = own
        self.schedule = StepLR(self.own, 1, gamma=0.5)

    def configure_optimizers(self):
        return [self.own], [self.schedule]

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        optimizer = self.own if self.steps_own else self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.schedule.step()


def fitted(tmp_path, module, **options):
    run = trainer(tmp_path, **options)
    run.fit(module, loader())
    return run, parameters_sha256(module)


@REPLACED
@pytest.mark.parametrize("form", [Own, OwnByClosure, OwnByReturningClosure, WithoutLightning, ByTheTrainer])
def test_every_way_to_step_ends_at_the_same_bits(tmp_path, form):
    _, expected = fitted(tmp_path, ThroughLightning(), max_epochs=2)
    start = parameters_sha256(form())
    module = form()
    run, found = fitted(tmp_path, module, max_epochs=2)
    assert found == expected != start
    assert run.optimizers[0].progress.step == 16
    assert "step" not in vars(module.own), "the redirection outlives the fit"


@REPLACED
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_objects_of_every_class(tmp_path, kind):
    module = Own(lambda m: kind(m.parameters(), lr=1e-3))
    before = parameters_sha256(module)
    _, after = fitted(tmp_path, module)
    assert before != after


@REPLACED
def test_a_schedule_of_the_own_object_is_followed_without_a_warning(tmp_path):
    runs = [fitted(tmp_path, Scheduled(own=own)) for own in (True, False)]
    assert runs[0][1] == runs[1][1]
    assert runs[0][0].optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**8)


@REPLACED
def test_two_own_objects_step_each_its_own_part(tmp_path):
    class Two(Boring):
        def __init__(self, own):
            super().__init__()
            self.automatic_optimization = False
            self.pair = [torch.optim.Adam(self.net[place].parameters(), lr=1e-3) for place in (0, 3)]
            self.own = own

        def configure_optimizers(self):
            return self.pair

        def training_step(self, batch, batch_idx):
            for optimizer in self.pair if self.own else self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    hashes = [fitted(tmp_path, Two(own))[1] for own in (True, False)]
    assert hashes[0] == hashes[1] != parameters_sha256(Two(True))


@REPLACED
def test_the_hook_of_an_automatic_module_may_step_the_own_object(tmp_path):
    class Hooked(Boring):
        def __init__(self, own):
            super().__init__()
            self.own, self.uses_own = adam(self), own

        def configure_optimizers(self):
            return self.own

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            (self.own if self.uses_own else optimizer).step(closure=optimizer_closure)

    hashes = [fitted(tmp_path, Hooked(own))[1] for own in (True, False)]
    assert hashes[0] == hashes[1] != parameters_sha256(Hooked(True))


# --- refused ----------------------------------------------------------------------------------------------------------


class Unknown(Boring):
    """Steps an optimizer that it does not return."""

    def __init__(self, make, returned=None):
        super().__init__(returned)
        self.automatic_optimization = False
        self.own = make(self)

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        self.own.step()


@pytest.mark.parametrize("make", [adam, lambda m: PolyStep(m.parameters())], ids=["Adam", "PolyStep"])
@pytest.mark.parametrize("returned", [None, polystep], ids=["nothing", "another"])
def test_an_optimizer_that_was_not_returned_is_refused(tmp_path, make, returned):
    with pytest.raises(MisconfigurationException, match=r"configure_optimizers did not return this.*: return it from"):
        fitted(tmp_path, Unknown(make, returned))
    # and is the user's again after the fit
    module = Boring()
    optimizer = adam(module)
    module.loss(next(iter(loader()))).backward()
    optimizer.step()


def test_what_has_a_gradient_of_its_own_is_left_alone(tmp_path):
    class Beside(Boring):
        """Trains a part by a true gradient beside the rest."""

        def __init__(self):
            super().__init__()
            self.side = torch.nn.Parameter(torch.zeros(1))
            self.sgd = torch.optim.SGD([self.side], lr=0.25)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            with torch.enable_grad():
                (self.side - 1).square().sum().backward()
            self.sgd.step()
            self.sgd.zero_grad()

        def configure_optimizers(self):
            return polystep(self.net)

    module = Beside()
    fitted(tmp_path, module)
    assert module.side.item() == pytest.approx(1.0, abs=0.01)


def test_an_engine_of_the_users_own_is_left_alone(tmp_path):
    class Nested(Boring):
        def __init__(self):
            super().__init__(lambda m: polystep(m.net))
            self.other = torch.nn.Linear(4, 1)
            self.engine = (Engine(self.other, PolyStep(self.other.parameters()), announce=None),)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.engine[0].step(lambda: self.other(batch[0]).square().mean())

    module = Nested()
    before = parameters_sha256(module.other)
    fitted(tmp_path, module)
    assert parameters_sha256(module.other) != before


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation, as it is copied from project to project."""

    def __init__(self, params, base_optimizer=torch.optim.SGD, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm()
        assert norm >= 0

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        self.base_optimizer.step()


class Sharp(Own):
    def __init__(self, *, own):
        super().__init__(lambda m: SAM(m.parameters(), lr=1e-3))
        self.uses_own = own

    def training_step(self, batch, batch_idx):
        optimizer = self.own if self.uses_own else self.optimizers()
        self.manual_backward(self.loss(batch))
        optimizer.first_step(zero_grad=True)
        self.manual_backward(self.loss(batch))
        optimizer.second_step(zero_grad=True)


@REPLACED
@pytest.mark.parametrize("own", [True, False])
def test_steps_that_need_gradients_are_refused_by_name(tmp_path, own):
    with pytest.raises(MisconfigurationException, match=r"SAM\.first_step\(\) is not among the methods of PolyStep"):
        fitted(tmp_path, Sharp(own=own))


@REPLACED
def test_such_an_optimizer_trains_where_only_its_step_is_called(tmp_path):
    module = Own(lambda m: SAM(m.parameters(), lr=1e-3))
    _, found = fitted(tmp_path, module)
    assert found == fitted(tmp_path, ThroughLightning(lambda m: SAM(m.parameters(), lr=1e-3)))[1]


def test_own_methods_of_torchs_optimizers():
    assert own_methods(adam(Boring())) == []
    assert own_methods(SAM(Boring().parameters(), lr=1.0)) == ["first_step", "second_step"]
