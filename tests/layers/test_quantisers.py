"""The activation quantiser is its function with a frozen scale, and refuses to guess one."""

import pytest
import torch

from lightning_polystep.functional import NonDifferentiableError, quant_activation
from lightning_polystep.layers import NotCalibratedError, QuantActivation
from tests.helpers.layers import COPIES


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (1, False), (2, True)])
def test_equals_its_function(bits, signed):
    x = torch.randn(50)
    layer = QuantActivation(bits, signed, scale=0.1)
    assert torch.equal(layer(x), quant_activation(x, torch.tensor(0.1), bits, signed))
    assert torch.equal(layer.codes(x) * torch.tensor(0.1), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (1, False)])
def test_keeps_the_promise_of_a_step_function(bits, signed, dtype):
    layer = QuantActivation(bits, signed, scale=0.037).to(dtype)
    x = torch.linspace(-15, 15, 40_001).to(dtype)
    output, levels = layer(x), layer.levels(dtype)
    assert torch.isin(output, levels).all()
    assert torch.equal(output.unique(), levels) or dtype == torch.bfloat16, "inputs of 8 bits skip some of 8-bit codes"
    assert (output[1:] >= output[:-1]).all()


def test_use_before_calibration_names_the_layer():
    message = r"^QuantActivation\(bits=4, signed=False, not calibrated\) has no scale yet: calibrate first, .*[.]$"
    layer = QuantActivation(bits=4)
    for call in (layer, layer.codes, lambda _: layer.levels(torch.float32)):
        with pytest.raises(NotCalibratedError, match=message):
            call(torch.ones(2))


def test_calibrate_and_forget():
    layer = QuantActivation(bits=4)
    layer.calibrate(torch.linspace(-9, 30, 100), percentile=100)
    assert layer.calibrated
    assert layer(torch.tensor([-5.0, 3.1, 100.0])).tolist() == [0, 4, 30]
    layer.forget_scale()
    assert not layer.calibrated


def test_the_scale_is_a_buffer_and_not_a_parameter():
    layer = QuantActivation(scale=0.5)
    assert not list(layer.parameters())
    assert layer.state_dict() == {"scale": torch.tensor(0.5)}


@pytest.mark.parametrize("source", [QuantActivation(scale=0.5), QuantActivation()])
@pytest.mark.parametrize("target", [QuantActivation(scale=0.1), QuantActivation()])
def test_state_dict_round_trip_carries_whether_it_is_calibrated(source, target):
    target.load_state_dict(source.state_dict())
    assert target.calibrated == source.calibrated
    assert torch.equal(target.scale, source.scale)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike(copied):
    x = torch.randn(9)
    layer = QuantActivation(scale=0.2)
    assert torch.equal(copied(layer)(x), layer(x))
    assert not copied(QuantActivation()).calibrated


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match=r"QuantActivation\(bits=8, signed=False\)"):
        QuantActivation(scale=0.1)(x).sum().backward()
    QuantActivation(scale=0.1, on_backward="zero")(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


@pytest.mark.parametrize("option", [{"bits": 0}, {"bits": 16}, {"scale": -1.0}, {"on_backward": "ste"}])
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"^QuantActivation: {next(iter(option))} must be .*[.]$"):
        QuantActivation(**option)


def test_a_wide_range_has_one_code_more_below():
    x = torch.tensor([-9.0, -4.0, -3.6, -3.4, 3.0, 9.0])
    wide = QuantActivation(3, signed=True, scale=1.0, narrow_range=False)
    assert wide(x).tolist() == [-4.0, -4.0, -4.0, -3.0, 3.0, 3.0]
    assert wide.levels(torch.float32).tolist() == [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert "narrow_range=False" in str(wide)
    assert QuantActivation(3, signed=True, scale=1.0)(x).tolist() == [-3.0, -3.0, -3.0, -3.0, 3.0, 3.0]


def test_a_scale_that_is_a_parameter_is_refused():
    with pytest.raises(ValueError, match="scale is a buffer, which training leaves alone"):
        QuantActivation(scale=torch.nn.Parameter(torch.tensor(0.5)))
