"""What a fit refuses, as the user meets it: one sentence that says what to do, and nothing left behind."""

import re

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_polystep import PolyStep, PolyStepStrategy
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, loader, polystep, trainer

ONE_SENTENCE = re.compile(r"[^\n]*[^.\n]\.")


def refused(tmp_path, module, error=MisconfigurationException, **options):
    """The message of a fit that must be refused, after checking that it left nothing behind."""
    run = trainer(tmp_path, **options)
    callbacks, values = list(run.callbacks), {name: id(p) for name, p in module.named_parameters()}
    with pytest.raises(error) as raised:
        run.fit(module, loader(batches=2))
    assert run.callbacks == callbacks
    assert torch.is_grad_enabled()
    assert {name: id(p) for name, p in module.named_parameters()} == values
    assert run.global_step == 0
    message = str(raised.value)
    assert ONE_SENTENCE.fullmatch(message), message
    return message


@pytest.mark.parametrize(
    "options",
    [{"gradient_clip_val": 1.0}, {"detect_anomaly": True}, {"sync_batchnorm": True}],
    ids=lambda options: next(iter(options)),
)
def test_trainer_settings(tmp_path, options):
    assert next(iter(options)) in refused(tmp_path, Boring(), **options)


def test_clipping_in_a_manual_module(tmp_path):
    """Lightning itself refuses it when the module is manual."""
    module = Boring(polystep)
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="clipping is not supported for manual optimization"):
        trainer(tmp_path, gradient_clip_val=1.0).fit(module, loader())


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_the_iterator_flavour(tmp_path):
    class Iterating(Boring):
        def training_step(self, dataloader_iter):
            raise AssertionError

    assert "take `batch` instead" in refused(tmp_path, Iterating(polystep))


def test_lbfgs(tmp_path):
    message = refused(tmp_path, Boring(lambda m: torch.optim.LBFGS(m.parameters())))
    assert "LBFGS" in message
    assert "lightning_polystep.PolyStep(self.parameters())" in message


def test_a_foreign_optimizer_when_asked_to(tmp_path):
    strategy = PolyStepStrategy(foreign_optimizer="error", show_plan=False)
    message = refused(tmp_path, Boring(lambda m: torch.optim.Adam(m.parameters())), strategy=strategy)
    assert "configure_optimizers returned Adam" in message


@pytest.mark.parametrize("sizes", [{"data_parallel_size": 3}, {"candidate_parallel_size": 4}], ids=str)
def test_sizes_that_do_not_make_the_world(tmp_path, sizes):
    with pytest.raises(MisconfigurationException, match="must be the number of devices on all nodes") as raised:
        trainer(tmp_path, devices=2, strategy=PolyStepStrategy(**sizes))
    assert ONE_SENTENCE.fullmatch(str(raised.value))


@pytest.mark.parametrize("make", [None, lambda m: torch.optim.Adam(m.parameters()), polystep])
def test_no_trainable_parameters(tmp_path, make):
    module = Boring(make).requires_grad_(False)
    assert "no trainable parameter: unfreeze some" in refused(tmp_path, module, ValueError)


def test_no_parameters_at_all(tmp_path):
    class Empty(Boring):
        def __init__(self):
            super().__init__()
            self.net = nn.Identity()

    assert "no trainable parameter" in refused(tmp_path, Empty(), ValueError)


@pytest.mark.parametrize("make", [None, polystep])
def test_lazy_parameters(tmp_path, make):
    module = Boring(make)
    module.net[0] = nn.LazyLinear(6)
    assert "net.0.weight is lazy" in refused(tmp_path, module, ValueError)


@pytest.mark.filterwarnings("ignore:configure_optimizers returned Adam")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("make", [None, polystep, lambda m: torch.optim.Adam(m.parameters())])
@pytest.mark.parametrize(
    "extra",
    [
        lambda: nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False),
        lambda: nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False),
        lambda: nn.Parameter(torch.zeros(0)),
        lambda: nn.Parameter(torch.zeros(3, 0, 2)),
        lambda: nn.Linear(0, 5, bias=False),
        lambda: nn.Embedding(0, 5),
    ],
    ids=["int8", "bool", "empty", "empty in the middle", "layer without inputs", "empty table"],
)
def test_parameters_without_directions_are_trained_around(tmp_path, make, extra):
    """As by plain Lightning: the others end where they would without them."""
    modules = [Boring(make), Boring(make)]
    modules[0].extra = extra()
    for module in modules:
        torch.manual_seed(0)
        trainer(tmp_path).fit(module, loader(batches=4))
    assert parameters_sha256(modules[0].net) == parameters_sha256(modules[1].net) != parameters_sha256(Boring().net)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_bias_behind_an_empty_weight_trains(tmp_path):
    class Empty(Boring):
        def __init__(self):
            super().__init__(polystep)
            self.extra = nn.Linear(0, 2)

        def loss(self, batch):
            return super().loss(batch) + (self.extra(batch[0][:, :0]) - 1).square().mean()

    module = Empty()
    before = module.extra.bias.detach().clone()
    trainer(tmp_path, max_epochs=4).fit(module, loader())
    after = module.extra.bias.detach()
    assert float((after - 1).abs().mean()) < float((before - 1).abs().mean())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_nothing_but_empty_parameters(tmp_path):
    class Empty(Boring):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(0, 0)

    assert "no trainable parameter" in refused(tmp_path, Empty(), ValueError)


def test_parameters_of_another_module(tmp_path):
    elsewhere = nn.Linear(2, 2)
    module = Boring(lambda m: PolyStep([*m.parameters(), *elsewhere.parameters()]))
    with pytest.raises(ValueError, match=r"PolyStep holds a parameter of shape \(2, 2\)"):
        trainer(tmp_path).fit(module, loader())


@pytest.mark.parametrize("manual", [False, True])
def test_polystep_without_the_strategy(tmp_path, manual):
    class Module(Boring):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if manual:
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    module = Module(polystep)
    module.automatic_optimization = not manual
    before = parameters_sha256(module)
    with pytest.raises(RuntimeError, match=r'nothing scores them: train with Trainer\(strategy="polystep"\)') as raised:
        trainer(tmp_path, strategy="auto").fit(module, loader())
    assert ONE_SENTENCE.fullmatch(str(raised.value))
    assert parameters_sha256(module) == before


def test_a_tape_that_was_asked_for_but_cannot_be(tmp_path):
    class Item(Boring):
        def loss(self, batch):
            loss = super().loss(batch)
            return loss * (1 + loss.item())

    strategy = PolyStepStrategy(evaluation="tape", show_plan=False)
    message = refused(tmp_path, Item(polystep), RuntimeError, strategy=strategy)
    assert "Python reads numbers that depend on it in test_strategy_refusals.py" in message
    assert "use evaluation='auto'" in message


# --- losses -----------------------------------------------------------------------------------------------------------


class Returning(Boring):
    """Returns something made from its loss."""

    def __init__(self, make_loss, *, manual=False):
        super().__init__(polystep)
        self.make_loss = make_loss
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.make_loss(self.loss(batch))
        return self.optimizers().step(lambda: self.make_loss(self.loss(batch)))


@pytest.mark.parametrize("manual", [False, True])
def test_a_vector(tmp_path, manual):
    message = refused(tmp_path, Returning(lambda loss: loss.repeat(3), manual=manual), ValueError)
    assert "a loss of shape (3,); return a scalar" in message


@pytest.mark.parametrize("value", [3, 0.5, "loss"])
def test_a_plain_number_is_refused_by_lightning(tmp_path, value):
    with pytest.raises(MisconfigurationException, match="`training_step` must return a Tensor, a dict, or None"):
        trainer(tmp_path).fit(Returning(lambda _loss: value), loader())


@pytest.mark.parametrize("value", [3, 0.5])
def test_a_plain_number_from_a_manual_closure(tmp_path, value):
    message = refused(tmp_path, Returning(lambda _loss: value, manual=True), ValueError)
    assert f"returned {type(value).__name__} as its loss: return a floating-point scalar tensor" in message


def test_a_dict_without_a_loss_is_refused_by_lightning(tmp_path):
    with pytest.raises(MisconfigurationException, match="'loss' key needs to be present"):
        trainer(tmp_path).fit(Returning(lambda loss: {"value": loss}), loader())


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_number_in_any_shape_is_a_loss(tmp_path, shape):
    module, scalar = Returning(lambda loss: loss.reshape(shape)), Returning(lambda loss: loss)
    for each in (module, scalar):
        trainer(tmp_path).fit(each, loader(batches=2))
    assert parameters_sha256(module) == parameters_sha256(scalar)


def test_a_count_of_errors_trains(tmp_path):
    """Nothing needs to be differentiable: the number of wrong answers, an integer, is a loss."""

    class Errors(Boring):
        def loss(self, batch):
            inputs, labels = batch
            return (self.net(inputs).argmax(-1) != labels).sum()

        def log(self, name, value, **kwargs):
            super().log(name, torch.as_tensor(value).float(), **kwargs)  # Lightning warns of integers

    module = Errors(polystep)
    trainer(tmp_path, max_epochs=6).fit(module, loader(batches=2, batch_size=32))
    assert sum(module.losses[-2:]) < sum(module.losses[:2])


def test_a_constant_loss_moves_nothing(tmp_path):
    module = Returning(lambda loss: 0 * loss + 1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run = trainer(tmp_path)
    run.fit(module, loader(batches=2))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-6, rtol=0)
    assert float(run.callback_metrics["polystep/flat_rows"]) == 1.0


# --- arguments of the strategy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation", "Auto"),
        ("evaluation", None),
        ("foreign_optimizer", "x"),
        ("max_candidates", -5),
        ("max_candidates", 0),
        ("max_candidates", 2.5),
        ("memory_budget", 0),
        ("memory_budget", "1GB"),
        ("optimizer_options", ["lr"]),
        ("show_plan", "no"),
        ("log_per_block", 1),
        ("timeout", -1),
        ("timeout", float("inf")),
        ("timeout", "long"),
        ("start_method", "thread"),
        ("data_parallel_size", 0),
        ("candidate_parallel_size", "all"),
        ("check_replicas_every_n_steps", 0),
    ],
)
def test_values_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=rf"PolyStepStrategy\({name}=") as raised:
        PolyStepStrategy(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_infinite_options_are_refused_and_not_blamed_on_samples(tmp_path, name):
    strategy = PolyStepStrategy(optimizer_options={name: float("inf")}, show_plan=False)
    assert f"{name}=inf" in refused(tmp_path, Boring(), ValueError, strategy=strategy)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0.*at least 0"),
        ({"subspace": "fancy"}, r"subspace='fancy'.*choose from inputs, gaussian"),
        ({"momentum": 1.0}, r"momentum=1\.0.*\[0, 1\)"),
        ({"rank": 0}, r"rank=0.*at least one direction"),
    ],
    ids=str,
)
def test_options_of_the_strategy_reach_polysteps_own_checks(tmp_path, options, message):
    strategy = PolyStepStrategy(optimizer_options=options, show_plan=False)
    assert re.search(message, refused(tmp_path, Boring(), ValueError, strategy=strategy))


def test_an_unknown_option(tmp_path):
    strategy = PolyStepStrategy(optimizer_options={"learning_rate": 1.0}, show_plan=False)
    message = refused(tmp_path, Boring(), TypeError, strategy=strategy)
    assert "no option 'learning_rate': choose from lr, probe_radius" in message
