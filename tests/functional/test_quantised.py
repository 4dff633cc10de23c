"""Quantised linear and convolution layers against int64 arithmetic, bit for bit, and against plain float layers."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from lightning_polystep.functional import (
    ActivationFormat,
    NonDifferentiableError,
    activation_codes,
    integer_conv2d,
    integer_linear,
    quant_conv2d,
    quant_linear,
    quantise_weight,
    weight_scale,
)
from lightning_polystep.functional.quantised import accumulator_dtype

FORMATS = ("int8", "ternary", "binary")
GEOMETRIES = [
    {},
    {"stride": 2},
    {"padding": 1},
    {"padding": (2, 0), "stride": (1, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"groups": 2, "padding": 1},
    {"dilation": (1, 2), "groups": 4},
]


def conv_int64(x, weight, **geometry):
    """In float64, whose sums of these codes are exact by a direct convolution, and whole afterwards."""
    sums = F.conv2d(x.double(), weight.double(), **geometry)
    assert torch.equal(sums, sums.round())
    return sums.long()


@given(fan_in=st.integers(1, 3000), largest=st.booleans(), seed=st.integers(0, 2**32))
def test_integer_linear_equals_int64(fan_in, largest, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (3, fan_in), generator=generator)
    weight = torch.randint(-127, 128, (4, fan_in), generator=generator)
    if largest:
        x, weight = torch.full_like(x, 255), torch.full_like(weight, -127)
    accumulator = accumulator_dtype(255, 127, fan_in)
    assert torch.equal(integer_linear(x, weight, accumulator).long(), x @ weight.T)
    assert (accumulator == torch.float32) == (255 * 127 * fan_in < 2**24)


def test_the_largest_sum_in_float32_is_exact():
    x, weight = torch.full((1, 518), 255), torch.full((1, 518), 127)
    weight[0, 0] = 126
    assert integer_linear(x, weight, torch.float32).item() == 518 * 255 * 127 - 255


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64])
def test_integer_conv2d_equals_a_direct_convolution(geometry, accumulator):
    x, weight = torch.randint(0, 256, (2, 4, 9, 8)), torch.randint(-127, 128, (8, 4, 3, 3))
    weight = weight[:, : 4 // geometry.get("groups", 1)]
    expected = conv_int64(x, weight, **geometry)
    assert torch.equal(integer_conv2d(x, weight, accumulator, **geometry).long(), expected)
    assert torch.equal(integer_conv2d(x[0], weight, accumulator, **geometry).long(), expected[0])


def test_integers_stay_exact_under_autocast():
    x, weight = torch.randint(0, 256, (3, 40)), torch.randint(-127, 128, (4, 40))
    image, kernel = torch.randint(0, 256, (2, 3, 6, 6)), torch.randint(-127, 128, (4, 3, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(integer_linear(x, weight, torch.float32).long(), x @ weight.T)
        assert torch.equal(integer_conv2d(image, kernel, torch.float32).long(), conv_int64(image, kernel))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("fan_in", [20, 900])
def test_the_integer_path_is_scales_times_integer_sums(weight_format, signed, fan_in):
    x, weight, bias = 3 * torch.randn(6, fan_in), torch.randn(5, fan_in), torch.randn(5)
    scale, input_format = weight_scale(weight, weight_format), ActivationFormat(torch.tensor(0.02), 8, signed)
    sums = activation_codes(x, *input_format).long() @ quantise_weight(weight, scale, weight_format).long().T
    wide = accumulator_dtype(127 if signed else 255, 127 if weight_format == "int8" else 1, fan_in)
    expected = (sums.to(wide) * (torch.tensor(0.02).to(wide) * scale.to(wide))).float() + bias
    output = quant_linear(x, weight, scale, bias, weight_format=weight_format, input_format=input_format, integer=True)
    assert torch.equal(output, expected)


def test_float64_inputs_are_scaled_in_float64():
    x, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in ((6, 20), (5, 20), (5,)))
    scale, input_format = weight_scale(weight), ActivationFormat(torch.tensor(0.02, dtype=torch.float64), 8, True)
    options = {"weight_format": "int8", "input_format": input_format}
    integer, exact = (quant_linear(x, weight, scale, bias, **options, integer=way) for way in (True, False))
    torch.testing.assert_close(integer, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_integer_convolution_is_scales_times_integer_sums(geometry):
    x, weight, bias = 3 * torch.randn(2, 4, 9, 8), torch.randn(8, 4 // geometry.get("groups", 1), 3, 3), torch.randn(8)
    scale, input_format = weight_scale(weight), ActivationFormat(torch.tensor(0.02), 8, False)
    sums = conv_int64(activation_codes(x, *input_format), quantise_weight(weight, scale), **geometry)
    expected = sums.float() * (torch.tensor(0.02) * scale).view(-1, 1, 1) + bias.view(-1, 1, 1)
    options = {"input_format": input_format, **geometry}
    assert torch.equal(quant_conv2d(x, weight, scale, bias, integer=True, **options), expected)
    assert torch.allclose(quant_conv2d(x, weight, scale, bias, **options), expected, atol=1e-4)


@pytest.mark.parametrize(("weight_format", "per_channel"), list(itertools.product(FORMATS, (True, False))))
def test_is_the_float_layer_on_quantised_weights(weight_format, per_channel):
    x, weight, bias = torch.randn(6, 7), torch.randn(5, 7), torch.randn(5)
    scale = weight_scale(weight, weight_format, "per_channel" if per_channel else "per_tensor")
    rows = scale.view(-1, 1) if per_channel else scale
    quantised = quantise_weight(weight, scale, weight_format) * rows
    output = quant_linear(x, weight, scale, bias, weight_format=weight_format)
    assert torch.allclose(output, F.linear(x, quantised, bias), atol=1e-5)
    image, kernel = torch.randn(2, 7, 4, 4), weight.view(5, 7, 1, 1)
    output = quant_conv2d(image, kernel, scale, bias, weight_format=weight_format)
    assert torch.allclose(output, F.conv2d(image, quantised.view(5, 7, 1, 1), bias), atol=1e-5)


def test_int8_is_close_to_float():
    x, weight = torch.randn(50, 64), torch.randn(8, 64)
    error = quant_linear(x, weight, weight_scale(weight)) - F.linear(x, weight)
    assert error.std() < 0.01 * F.linear(x, weight).std()


def test_float_weights_are_left_as_they_are():
    x, weight, bias = torch.randn(6, 7), torch.randn(5, 7), torch.randn(5)
    assert torch.allclose(quant_linear(x, weight, None, bias, weight_format="float"), F.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("integer", [False, True])
def test_other_float_types(dtype, integer):
    x, weight, bias = (torch.randint(0, 4, size).to(dtype) for size in ((3, 6), (5, 6), (5,)))
    input_format = ActivationFormat(torch.tensor(1.0), 2, False)
    output = quant_linear(x, weight, torch.tensor(1.0), bias, input_format=input_format, integer=integer)
    assert output.dtype == dtype
    assert torch.equal(output.double(), F.linear(x.double(), weight.double(), bias.double()))
    image, kernel = x.view(1, 1, 3, 6), weight[:, :4].reshape(5, 1, 2, 2)
    output = quant_conv2d(image, kernel, torch.tensor(1.0), bias, input_format=input_format, integer=integer)
    assert output.dtype == dtype
    assert torch.equal(output.double(), F.conv2d(image.double(), kernel.double(), bias.double()))


@pytest.mark.parametrize("integer", [False, True])
def test_vmap_over_weights_equals_the_loop(integer):
    scale, input_format = torch.rand(5) + 0.1, ActivationFormat(torch.tensor(0.1), 8, False)
    options = {"input_format": input_format, "integer": integer}
    x, weights = torch.randn(6, 7), torch.randn(3, 5, 7)
    together = torch.func.vmap(lambda w: quant_linear(x, w, scale, **options))(weights)
    alone = torch.stack([quant_linear(x, w, scale, **options) for w in weights])
    assert torch.equal(together, alone) if integer else torch.allclose(together, alone, atol=1e-5)
    image, kernels = torch.randn(2, 3, 6, 6), torch.randn(3, 5, 3, 3, 3)
    together = torch.func.vmap(lambda w: quant_conv2d(image, w, scale, padding=1, **options))(kernels)
    alone = torch.stack([quant_conv2d(image, w, scale, padding=1, **options) for w in kernels])
    assert torch.equal(together, alone) if integer else torch.allclose(together, alone, atol=1e-4)
    images = torch.randn(3, 2, 3, 6, 6)
    together = torch.func.vmap(lambda x, w: quant_conv2d(x, w, scale, **options))(images, kernels)
    alone = torch.stack([quant_conv2d(x, w, scale, **options) for x, w in zip(images, kernels, strict=True)])
    assert torch.equal(together, alone) if integer else torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("integer", [False, True])
def test_backward_raises_or_gives_zeros(integer):
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    options = {"input_format": ActivationFormat(torch.tensor(0.1)), "integer": integer}
    with pytest.raises(NonDifferentiableError, match="hidden"):
        quant_linear(x, weight, torch.tensor(0.1), name="hidden", **options).sum().backward()
    quant_linear(x, weight, torch.tensor(0.1), on_backward="zero", **options).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))
    assert torch.equal(weight.grad, torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("weight_format must be", {"weight_format": "int9"}),
        ("needs a weight_scale", {"weight_scale": None}),
        ("quantised weights", {"integer": True, "weight_format": "float"}),
        ("quantised inputs", {"integer": True}),
        ("on_backward must be", {"on_backward": "ste"}),
    ],
)
def test_bad_options_are_refused_in_one_sentence(message, options):
    options = {"weight_scale": torch.tensor(1.0), "name": "hidden", **options}
    with pytest.raises(ValueError, match=f"^hidden: .*{message}.*[.]$"):
        quant_linear(torch.ones(2, 3), torch.ones(4, 3), **options)
    with pytest.raises(ValueError, match=f"^hidden: .*{message}.*[.]$"):
        quant_conv2d(torch.ones(2, 3, 1, 1), torch.ones(4, 3, 1, 1), **options)
