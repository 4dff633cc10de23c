"""Quantisers against plain numpy: codes, ties, ranges, and scales by the published rules."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import (
    NonDifferentiableError,
    activation_codes,
    activation_scale,
    quant_activation,
    quantise_weight,
    weight_scale,
)

FORMATS = ("int8", "ternary", "binary")


def plain_codes(weight, scale, weight_format):
    """Codes by numpy, whose rint also rounds a tie to even; one scale per row, or one for all."""
    if weight_format == "binary":
        return np.where(weight >= 0, 1, -1)
    high = {"int8": 127, "ternary": 1}[weight_format]
    rows = np.broadcast_to(np.asarray(scale).reshape(-1, 1), (len(weight), 1))
    return np.clip(np.rint(weight / rows), -high, high)


@given(
    weight_format=st.sampled_from(FORMATS),
    per_channel=st.booleans(),
    gain=st.sampled_from((0.1, 1.0, 30.0)),
    seed=st.integers(0, 2**32),
)
def test_weight_codes_equal_numpy(weight_format, per_channel, gain, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = gain * torch.randn(5, 7, generator=generator)
    scale = torch.rand(5 if per_channel else (), generator=generator) + 0.01
    codes = quantise_weight(weight, scale, weight_format)
    assert np.array_equal(codes.numpy(), plain_codes(weight.numpy(), scale.numpy(), weight_format))


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [("int8", [-127, -2, 0, 0, 0, 2, 127]), ("ternary", [-1, -1, 0, 0, 0, 1, 1]), ("binary", [-1, -1, -1, 1, 1, 1, 1])],
)
def test_ties_and_range(weight_format, expected):
    weight = torch.tensor([[-1e6, -1.5, -0.5, -0.0, 0.5, 1.5, 1e6]])
    codes = quantise_weight(weight, torch.tensor(1.0), weight_format)
    assert codes.tolist() == [expected]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_one_weight_changes_its_own_code_alone(weight_format):
    weight = torch.randn(4, 5)
    scale = weight_scale(weight, weight_format)
    moved = weight.clone()
    moved[2, 3] = -9 * weight[2, 3].sign()
    changed = quantise_weight(moved, scale, weight_format) != quantise_weight(weight, scale, weight_format)
    assert changed.nonzero().tolist() == [[2, 3]]


def test_scales_by_their_rules():
    weight = torch.tensor([[1.0, -3.0, 2.0], [0.5, -0.5, 0.0]])
    assert torch.equal(weight_scale(weight), torch.tensor([3.0, 0.5]) / 127)
    assert torch.equal(weight_scale(weight, "int8", "per_tensor"), torch.tensor(3.0) / 127)
    for weight_format in ("ternary", "binary"):
        assert torch.allclose(weight_scale(weight, weight_format), torch.tensor([2.0, 1 / 3]))
        assert torch.allclose(weight_scale(weight, weight_format, "per_tensor"), torch.tensor(7 / 6))
    assert weight_scale(torch.zeros(2, 3, 3, 3)).tolist() == torch.full((2,), 1 / 127).tolist()


def test_scales_carry_no_gradient():
    assert not weight_scale(torch.randn(2, 3, requires_grad=True)).requires_grad


@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    scale=st.floats(0.015625, 3, width=32),
    x=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
)
def test_activations_equal_numpy(bits, signed, scale, x):
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = np.clip(np.rint(np.float32(x) / np.float32(scale)), low, high)
    values = torch.tensor(x, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)
    assert np.array_equal(activation_codes(*values, bits, signed).numpy(), codes)
    assert np.array_equal(quant_activation(*values, bits, signed).numpy(), codes * np.float32(scale))


def test_quantising_twice_is_quantising_once():
    scale = torch.tensor(0.037)
    once = quant_activation(20 * torch.rand(1000), scale)
    assert torch.equal(quant_activation(once, scale), once)


def test_one_bit_is_a_step():
    assert quant_activation(torch.tensor([0.4, 0.6, 7.0]), torch.tensor(1.0), bits=1).tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    x, scale = torch.tensor([-1.0, 0.75, 3.0, 999.0], dtype=dtype), torch.tensor(0.5)
    assert quant_activation(x, scale, bits=4).dtype == dtype
    assert activation_codes(x, scale, bits=4).tolist() == [0, 2, 6, 15]
    assert quantise_weight(x[None], scale).dtype == dtype


def test_activation_scale_is_a_percentile():
    values = torch.arange(1001.0) - 100
    assert activation_scale(values, percentile=100).item() == pytest.approx(900 / 255)
    assert activation_scale(values, percentile=90).item() == pytest.approx(800 / 255)
    assert activation_scale(-values, signed=True, percentile=100).item() == pytest.approx(900 / 127)
    assert activation_scale(torch.tensor([0.0] * 9999 + [5.0]), percentile=50).item() == pytest.approx(5 / 255)
    assert activation_scale(torch.zeros(3)).item() == pytest.approx(1 / 255)
    assert activation_scale(torch.tensor([1.0, torch.nan, torch.inf])).item() == pytest.approx(1 / 255)


def test_backward_raises_or_gives_zeros():
    x = torch.randn(2, 3, requires_grad=True)
    for quantise in (quantise_weight, quant_activation, activation_codes):
        with pytest.raises(NonDifferentiableError, match="hidden"):
            quantise(x, torch.tensor(0.1), name="hidden").sum().backward()
        x.grad = None
        quantise(x, torch.tensor(0.1), on_backward="zero").sum().backward()
        assert torch.equal(x.grad, torch.zeros(2, 3))


def test_vmap_equals_the_loop():
    weight, scale = torch.randn(4, 3, 5), torch.rand(3) + 0.1
    together = torch.func.vmap(lambda w: quantise_weight(w, scale))(weight)
    assert torch.equal(together, torch.stack([quantise_weight(w, scale) for w in weight]))
    scales = torch.rand(4) + 0.1
    together = torch.func.vmap(quant_activation)(weight, scales)
    assert torch.equal(together, torch.stack([quant_activation(*pair) for pair in zip(weight, scales, strict=True)]))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "weight_format must be", lambda w: quantise_weight(w, w[:, 0], "int9", name="hidden")),
        (ValueError, "has no codes", lambda w: quantise_weight(w, w[:, 0], "float", name="hidden")),
        (ValueError, r"scale of shape \(3,\)", lambda w: quantise_weight(w, w[0], name="hidden")),
        (ValueError, "on_backward must be", lambda w: quantise_weight(w, w[:, 0], on_backward="x", name="hidden")),
        (ValueError, "bits must be 1 to 8", lambda w: quant_activation(w, w[0, 0], 9, name="hidden")),
        (ValueError, "bits must be 2 to 8", lambda w: quant_activation(w, w[0, 0], 1, True, name="hidden")),
        (TypeError, r"call \.float\(\)", lambda w: quant_activation(w.int(), w[0, 0], name="hidden")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(error, message, call):
    with pytest.raises(error, match=f"^hidden: .*{message}.*[.]$"):
        call(torch.ones(2, 3))


def test_scales_refuse_misspelt_options():
    with pytest.raises(ValueError, match="weight_format must be"):
        weight_scale(torch.ones(2, 3), "fp8")
    with pytest.raises(ValueError, match='"float" has no scale'):
        weight_scale(torch.ones(2, 3), "float")
    with pytest.raises(ValueError, match="granularity must be"):
        weight_scale(torch.ones(2, 3), "int8", "per_row")
    with pytest.raises(ValueError, match="percentile must be"):
        activation_scale(torch.ones(3), percentile=0.0)
    with pytest.raises(ValueError, match="no finite value"):
        activation_scale(torch.tensor([torch.nan]))
