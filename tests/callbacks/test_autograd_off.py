import pytest
import pytorch_lightning as pl
import torch

from lightning_polystep.callbacks import AutogradOff
from tests.helpers.boring import Boring, loader, polystep, trainer

HOOKS = (
    "on_fit_start",
    "on_sanity_check_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)
STEPS = ("training_step", "validation_step", "optimizer_step", "lr_scheduler_step")


class Modes:
    """Whether autograd was on, by place; not a container, so that probes are recorded as well."""

    def __init__(self):
        self.seen = {}

    def note(self, place):
        self.seen.setdefault(place, []).append(torch.is_grad_enabled())


def recording(base, names, modes, prefix):
    """A subclass of ``base`` that notes the mode in each of the named methods, then does what the base does."""

    def method(name):
        def note(self, *args, **kwargs):
            modes.note(f"{prefix}.{name}")
            return getattr(base, name)(self, *args, **kwargs)

        return note

    return type(f"Recording{base.__name__}", (base,), {name: method(name) for name in names})


def scheduled(module):
    optimizer = polystep(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("validate_often", [False, True])
def test_autograd_is_off_everywhere_in_a_fit_and_on_again_after(tmp_path, validate_often):
    modes = Modes()
    in_module = [name for name in HOOKS if hasattr(pl.LightningModule, name)]
    module = recording(Boring, [*in_module, *STEPS], modes, "module")(scheduled)
    first = recording(pl.Callback, HOOKS, modes, "callback")()
    options = {"val_check_interval": 2} if validate_often else {}
    trainer(tmp_path, max_epochs=2, callbacks=[first], **options).fit(module, loader(batches=4))
    expected = [f"callback.{name}" for name in HOOKS] + [f"module.{name}" for name in [*in_module, *STEPS]]
    assert set(modes.seen) | {"module.on_sanity_check_start"} >= set(expected), "a hook was never called"
    assert {place: sum(on) for place, on in modes.seen.items()} == dict.fromkeys(modes.seen, 0)
    assert torch.is_grad_enabled()


def test_without_it_lightning_turns_autograd_on_before_the_users_hooks(tmp_path, monkeypatch):
    """The callback is needed; if this fails, a newer Lightning has made it superfluous."""
    monkeypatch.setattr(AutogradOff, "on_train_start", pl.Callback.on_train_start)
    modes = Modes()
    callback = recording(pl.Callback, ["on_train_start"], modes, "callback")()
    trainer(tmp_path, callbacks=[callback]).fit(Boring(polystep), loader(batches=2))
    assert modes.seen == {"callback.on_train_start": [True]}


def test_candidates_are_scored_without_autograd(tmp_path):
    modes = Modes()

    class Watched(Boring):
        def loss(self, batch):
            modes.note("loss")
            return super().loss(batch)

    trainer(tmp_path).fit(Watched(polystep), loader(batches=2))
    assert len(modes.seen["loss"]) > 4, "candidates were not scored"
    assert not any(modes.seen["loss"])


def test_a_module_may_turn_autograd_on_for_itself(tmp_path):
    """A loss with a gradient inside, such as a gradient penalty."""

    class Penalty(Boring):
        def loss(self, batch):
            inputs, _ = batch
            with torch.enable_grad():
                inputs = inputs.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.net(inputs).sum(), inputs)
            return super().loss(batch) + 0.1 * slope.square().mean()

    module = Penalty(polystep)
    trainer(tmp_path, max_epochs=3).fit(module, loader())
    assert sum(module.losses[-8:]) < sum(module.losses[:8])
    assert all(p.grad is None for p in module.parameters())
