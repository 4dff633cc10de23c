"""Calibration sets scales from front to back and changes nothing else."""

import pytest
import torch
from torch import nn

from lightning_polystep.functional import activation_scale
from lightning_polystep.layers import QuantActivation, QuantLinear, calibrate


def network():
    return nn.Sequential(
        QuantLinear(6, 8), QuantActivation(4), nn.Dropout(0.5), QuantLinear(8, 5), QuantActivation(4), nn.Linear(5, 2)
    )


def test_later_quantisers_see_quantised_inputs():
    model, batches = network(), [torch.randn(16, 6) for _ in range(3)]
    calibrate(model, iter(batches), percentile=99)
    model.eval()
    with torch.no_grad():
        first = torch.cat([model[:1](batch) for batch in batches])
        assert torch.equal(model[1].scale, activation_scale(first, 4, percentile=99))
        second = torch.cat([model[:4](batch) for batch in batches])
    assert torch.equal(model[4].scale, activation_scale(second, 4, percentile=99))


def test_calibrating_again_replaces_the_scales():
    model, batch = network(), torch.randn(16, 6)
    calibrate(model, [batch])
    before = model[1].scale.clone(), model[0].weight_scale.clone()
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[0].bias.mul_(2)
    calibrate(model, [batch])
    assert torch.allclose(model[1].scale, 2 * before[0])
    assert torch.allclose(model[0].weight_scale, 2 * before[1])


def test_modes_are_put_back_and_parameters_left_alone():
    model = network()
    model[3].eval()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calibrate(model, [torch.randn(16, 6)])
    assert [module.training for module in model] == [True, True, True, False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_batches_are_pairs_or_tensors_or_the_callers_business():
    inputs, models = torch.randn(16, 6), [network() for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    calibrate(models[0], [inputs])
    calibrate(models[1], [(inputs, torch.zeros(16))])
    calibrate(models[2], [{"x": inputs}], forward=lambda batch: models[2](batch["x"]))
    assert torch.equal(models[0][4].scale, models[1][4].scale)
    assert torch.equal(models[0][4].scale, models[2][4].scale)


def test_only_the_first_batches_are_read():
    read = []

    def batches():
        for index in range(100):
            read.append(index)
            yield torch.randn(4, 6)

    calibrate(network(), batches(), max_batches=3)
    assert len(read) == 3


def test_a_shared_quantiser_is_calibrated_once():
    activation = QuantActivation(8)
    model = nn.Sequential(QuantLinear(6, 8), activation, QuantLinear(8, 3, input_quant=activation, integer=True))
    calibrate(model, [torch.randn(16, 6)])
    hidden = model[1](model[0](torch.randn(5, 6)))
    assert torch.equal(activation(hidden), hidden)


def test_a_quantiser_out_of_reach_keeps_its_scale():
    model = nn.Sequential(QuantLinear(6, 3))
    model[0].unused = QuantActivation(scale=0.25)
    calibrate(model, [torch.randn(4, 6)])
    assert model[0].unused.scale.item() == 0.25


def test_an_error_of_the_model_leaves_the_old_scales():
    model = nn.Sequential(QuantActivation(scale=0.25))
    with pytest.raises(ZeroDivisionError):
        calibrate(model, [torch.ones(2)], forward=lambda _: 1 / 0)
    assert model[0].scale.item() == 0.25


def test_weights_alone_need_no_batch():
    calibrate(nn.Sequential(QuantLinear(6, 3)), [])
    with pytest.raises(ValueError, match=r"^calibrate: there is no batch .*[.]$"):
        calibrate(network(), [])


def test_constant_scales_of_weights_are_kept_on_request():
    model = nn.Sequential(QuantLinear(6, 3, weight_format="binary"))
    model[0].weight_scale, model[0].scale_given = torch.full((3,), 0.25), True
    calibrate(model, [], keep_given=True)
    assert model[0].weight_scale.tolist() == [0.25] * 3
    calibrate(model, [])
    assert model[0].weight_scale.tolist() != [0.25] * 3
