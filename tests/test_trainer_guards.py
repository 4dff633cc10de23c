import math
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_polystep import trainer_guards
from tests.helpers.boring import Boring, loader, polystep, trainer


def checked(tmp_path, module=None, *, sync_batchnorm=False, **options):
    trainer_guards.check_fit(trainer(tmp_path, **options), module or Boring(), sync_batchnorm=sync_batchnorm)


def test_an_ordinary_fit_passes_without_a_warning(tmp_path):
    checked(tmp_path)
    checked(tmp_path, gradient_clip_val=0)  # clips nothing
    checked(tmp_path, gradient_clip_algorithm="norm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val=.*leave it out"),
        ({"detect_anomaly": True}, r"detect_anomaly=True.*leave it out"),
        ({"sync_batchnorm": True}, r"sync_batchnorm=True.*leave it out"),
    ],
    ids=str,
)
def test_settings_that_need_gradients_or_processes(tmp_path, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        checked(tmp_path, **options)


def test_the_iterator_flavour_of_training_step(tmp_path):
    class Iterating(Boring):
        def training_step(self, dataloader_iter):
            raise AssertionError

    with pytest.raises(MisconfigurationException, match=r"dataloader_iter.*take `batch` instead"):
        checked(tmp_path, Iterating())


@pytest.mark.filterwarnings("ignore:.*configure_gradient_clipping has no effect")
def test_a_clipping_hook_without_effect_is_not_called(tmp_path):
    class Clipping(Boring):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            raise AssertionError("called")

    run = trainer(tmp_path)
    run.fit(Clipping(polystep), loader(batches=2))
    assert run.global_step == 2
    assert "_clip_gradients" not in vars(run.precision_plugin)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_clipping_by_hand_says_once_that_it_has_no_effect(tmp_path, precision):
    class ByHand(Boring):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.loss((batch[0].to(self.net[0].weight.dtype), batch[1])))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()

    module = ByHand(polystep)
    module.automatic_optimization = False
    with pytest.warns(UserWarning, match=r"clip_gradients has no effect under PolyStep") as caught:
        trainer(tmp_path, precision=precision).fit(module, loader(batches=3))
    assert len([each for each in caught if "clip_gradients" in str(each.message)]) == 1


@pytest.mark.parametrize("hook", ["backward", "configure_gradient_clipping"])
def test_hooks_without_effect_are_named(tmp_path, hook):
    module = type("Overriding", (Boring,), {hook: lambda self, *args, **kwargs: None})()
    with pytest.warns(UserWarning, match=rf"Overriding\.{hook} has no effect under PolyStep"):
        checked(tmp_path, module)


def test_loaders_of_one_length():
    trainer_guards.check_loader_lengths([4.0, 4.0])
    trainer_guards.check_loader_lengths([math.inf, math.inf])
    with pytest.raises(MisconfigurationException, match=r"\(rank 0: 4, rank 1: inf\)"):
        trainer_guards.check_loader_lengths([4.0, math.inf])


def test_a_norm_that_synchronises():
    module = pl.LightningModule()
    module.norm = nn.SyncBatchNorm(2)
    with pytest.raises(MisconfigurationException, match="norm is a SyncBatchNorm"):
        trainer_guards.check_synchronised_norms(module)


def test_collectives_are_refused_inside_only():
    before = torch.distributed.all_reduce
    with (
        trainer_guards.collectives_refused(),
        pytest.raises(MisconfigurationException, match=r"called torch\.distributed\.all_reduce"),
    ):
        torch.distributed.all_reduce(torch.zeros(1))
    assert torch.distributed.all_reduce is before


def test_a_stop_iteration_becomes_an_error_with_its_cause():
    with (
        pytest.raises(RuntimeError, match="was raised in the step") as raised,
        trainer_guards.NoStopIteration("the step"),
    ):
        next(iter([]))
    assert isinstance(raised.value.__cause__, StopIteration)
    with pytest.raises(KeyError), trainer_guards.NoStopIteration("the step"):
        raise KeyError("passes through")


@pytest.mark.parametrize("layer", ["omp", "workqueue", None])
def test_a_fork_after_kernels(monkeypatch, layer):
    def threading_layer():
        if layer is None:
            raise ValueError("Threading layer is not initialized.")
        return layer

    monkeypatch.setattr("numba.threading_layer", threading_layer)
    monkeypatch.setattr("sys.platform", "linux")
    refused = pytest.raises(MisconfigurationException, match="NUMBA_THREADING_LAYER=workqueue")
    with refused if layer == "omp" else nullcontext():
        trainer_guards.check_fork()


def test_optimizers_that_cannot_be_replaced():
    parameters = [nn.Parameter(torch.zeros(2))]
    trainer_guards.check_replaceable(torch.optim.Adam(parameters))
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        trainer_guards.check_replaceable(torch.optim.LBFGS(parameters))


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_code_that_reads_gradients_is_told_that_there_are_none(tmp_path, hook):
    def clamp(module, *_args):
        for parameter in module.parameters():
            parameter.grad.clamp_(-1, 1)

    clamping = type("Clamping", (Boring,), {hook: clamp})
    with pytest.raises(AttributeError) as caught:
        trainer(tmp_path).fit(clamping(polystep), loader(batches=2))
    assert caught.value.__notes__ == [trainer_guards.NO_GRADIENT]


def test_another_missing_value_is_not_explained_by_gradients():
    with pytest.raises(AttributeError) as caught:
        None.item()
    trainer_guards.explain_missing_gradient(caught.value)
    assert not hasattr(caught.value, "__notes__")
