"""Calibration at the start of a fit: once, from training batches, without a trace in the order of the data."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from datamodules import TensorImages
from lightning_polystep import PolyStepStrategy
from lightning_polystep.callbacks import Calibrate
from lightning_polystep.interop import from_brevitas
from lightning_polystep.layers import QuantActivation, QuantLinear, calibrate
from models import Classifier, IntegerMLP

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "devices": 1,
    "num_sanity_val_steps": 1,
}


def data(shuffle=True):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 4, 4, generator=draw)
    return TensorImages(images, torch.randint(10, (64,), generator=draw)).loader(16, shuffle=shuffle)


def trainer(callback, tmp_path, **options):
    settings = QUIET | {"enable_checkpointing": False, "default_root_dir": tmp_path, "max_epochs": 1} | options
    return pl.Trainer(strategy=PolyStepStrategy(show_plan=False), callbacks=[callback], **settings)


def model():
    return Classifier(IntegerMLP((16, 6, 10)))


def scale(module):
    return module.network[3].input_quant.scale


def test_equals_calibration_by_hand(tmp_path):
    module, by_hand = model(), None
    by_hand = Classifier(IntegerMLP((16, 6, 10)))
    by_hand.load_state_dict(module.state_dict())
    trainer(Calibrate(max_batches=4), tmp_path, max_steps=1).fit(module, data(False), data(False))
    calibrate(by_hand, data(False), percentile=99.9, keep_given=True)
    assert torch.equal(scale(module), scale(by_hand))
    assert float(module.network[1].input_quant.scale) == pytest.approx(1 / 255)


def test_leaves_the_order_of_the_data_as_it_was(tmp_path):
    class Order(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(batch[1])

    orders = []
    for calibrated in (False, True):
        module, order = model(), Order()
        if calibrated is False:
            calibrate(module, data(False))
        pl.seed_everything(3, verbose=False)
        fit = trainer(Calibrate(), tmp_path)
        fit.callbacks.append(order)
        fit.fit(module, data(), data(False))
        orders.append(torch.cat(order.seen))
    assert torch.equal(*orders)


def test_a_calibrated_model_is_left_alone_with_a_message(tmp_path, caplog):
    module = model()
    calibrate(module, [torch.rand(8, 1, 4, 4)])
    before = scale(module).clone()
    with caplog.at_level(logging.INFO):
        trainer(Calibrate(), tmp_path, max_steps=1).fit(module, data(), data(False))
    assert torch.equal(scale(module), before)
    assert "every activation has a scale already" in caplog.text


def test_a_resumed_fit_keeps_the_scales_of_its_checkpoint(tmp_path):
    module = model()
    first = trainer(Calibrate(), tmp_path)
    first.fit(module, data(), data(False))
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed = model()
    second = trainer(Calibrate(), tmp_path, max_epochs=2)
    second.fit(resumed, data(), data(False), ckpt_path=tmp_path / "first.ckpt", weights_only=False)
    assert torch.equal(scale(resumed), scale(module))
    assert (first.global_step, second.global_step) == (4, 8)


def test_a_model_without_quantisers_is_none_of_its_business(tmp_path):
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
    trainer(Calibrate(follow=True), tmp_path, max_epochs=2).fit(module, data(), data(False))


def test_scales_follow_on_request(tmp_path):
    network = nn.Sequential(nn.Flatten(), QuantLinear(16, 6), QuantActivation(4), QuantLinear(6, 10))
    module = Classifier(network)
    scales = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            scales.append(float(network[2].scale))
            assert torch.equal(network[1].weight_scale, network[1].weight.abs().amax(1) / 127)

    fit = trainer(Calibrate(follow=True), tmp_path, max_epochs=3)
    fit.callbacks.append(Watch())
    fit.fit(module, data(), data(False))
    assert len(set(scales)) == 3


def test_scales_of_a_converted_network_follow_on_request_but_for_its_constants(tmp_path):
    qnn = pytest.importorskip("brevitas.nn")
    quant = pytest.importorskip("brevitas.quant")
    original = nn.Sequential(
        nn.Flatten(),
        qnn.QuantLinear(16, 6, bias=True),
        qnn.QuantReLU(bit_width=4),
        qnn.QuantLinear(6, 10, bias=True, weight_quant=quant.SignedTernaryWeightPerTensorConst),
    )
    original(torch.rand(64, 1, 4, 4))
    # As after Brevitas' own calibration: the scale is a number of its own from then on.
    original[2].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter = 301
    network = from_brevitas(original)
    before, constant = float(network[2].scale), network[3].weight_scale.clone()
    trainer(Calibrate(follow=True), tmp_path, max_epochs=3).fit(Classifier(network), data(), data(False))
    assert float(network[2].scale) != before
    assert torch.equal(network[3].weight_scale, constant)


def test_scales_stay_by_default(tmp_path):
    network = nn.Sequential(nn.Flatten(), QuantLinear(16, 6), QuantActivation(4), QuantLinear(6, 10))
    before = network[1].weight_scale.clone()
    with pytest.warns(UserWarning, match=r"weights have outgrown their frozen scales.*Calibrate\(follow=True\)"):
        trainer(Calibrate(), tmp_path, max_epochs=2).fit(Classifier(network), data(), data(False))
    assert torch.equal(network[1].weight_scale, before)


@pytest.mark.parametrize(
    ("options", "words"), [({"max_batches": 0}, "at least 1"), ({"percentile": 0}, "percentile must be above 0")]
)
def test_mistakes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Calibrate(**options)
