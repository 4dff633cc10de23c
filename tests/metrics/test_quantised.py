"""Codes, by loops over single values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.layers import QuantActivation, QuantLinear
from lightning_polystep.metrics import ClipFraction, CodeUtilisation, FlipRate

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@given(shape=SHAPES, low=st.integers(-9, 0), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_utilisation_equals_a_set(shape, low, width, seed):
    torch.manual_seed(seed)
    used = CodeUtilisation(range(low, low + width + 1))
    batches = [torch.randint(low, low + width + 1, (samples, *shape)).float() for samples in (1, 3)]
    found = set()
    for codes in batches:
        used.update(codes)
        found |= {int(code) for code in codes.flatten().tolist()}
    assert float(used.compute()) == pytest.approx(len(found) / (width + 1), rel=1e-6)


@given(
    shape=SHAPES, low=st.sampled_from([-7, -3, 0]), high=st.sampled_from([1, 7]), scale=st.sampled_from([0.1, 0.5, 2.0])
)
def test_clipping_equals_a_loop(shape, low, high, scale):
    clipped, outside, total = ClipFraction(low, high), 0, 0
    for samples in (2, 5):
        x = 2 * torch.randn(samples, *shape)
        clipped.update(x, torch.tensor(scale))
        for value in (x / scale).flatten().tolist():
            total += 1
            outside += round(value) > high or (low != 0 and round(value) < low)
    assert float(clipped.compute()) == pytest.approx(outside / total, rel=1e-6)


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_flips_equal_a_loop(shape, seed):
    torch.manual_seed(seed)
    flips, changed, total = FlipRate(), 0, 0
    for _ in range(2):
        before, after = torch.randint(-2, 3, shape), torch.randint(-2, 3, shape)
        flips.update(before, after)
        pairs = list(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
        changed, total = changed + sum(b != a for b, a in pairs), total + len(pairs)
    assert float(flips.compute()) == pytest.approx(changed / total, rel=1e-6)


@pytest.mark.parametrize(("bits", "signed"), [(1, False), (4, False), (4, True), (8, True)])
def test_a_layers_activations(bits, signed):
    layer, x = QuantActivation(bits, signed, scale=0.25), torch.randn(40)
    levels = layer.levels(torch.float32)
    low, high = round(float(levels[0]) / 0.25), round(float(levels[-1]) / 0.25)
    used, clipped = CodeUtilisation(range(low, high + 1)), ClipFraction(low, high)
    used.update(layer.codes(x))
    clipped.update(x, layer.scale)
    assert float(used.compute()) == pytest.approx(len(set(layer(x).tolist())) / len(levels))
    # Clipped is what a quantiser with more codes would have put elsewhere, but for the side of a ReLU.
    wide = QuantActivation(8, True, scale=0.25)
    other = wide(x) != layer(x)
    assert float(clipped.compute()) == pytest.approx(float((other & ((x > 0) | signed)).float().mean()))


@pytest.mark.parametrize(("weight_format", "possible"), [("int8", 255), ("ternary", 3), ("binary", 2)])
def test_a_layers_weights(weight_format, possible):
    layer = QuantLinear(6, 4, weight_format=weight_format)
    high = (possible - 1) // 2
    used = CodeUtilisation((-1, 1) if weight_format == "binary" else range(-high, high + 1))
    used.update(layer.weight_codes())
    assert float(used.compute()) == pytest.approx(len(set(layer.weight_codes().flatten().tolist())) / possible)


def test_scales_per_channel():
    clipped = ClipFraction(-1, 1)
    clipped.update(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([1.0, 0.5]))
    assert float(clipped.compute()) == 0.75


def test_nan_has_no_code_and_is_not_clipped():
    used, clipped, x = CodeUtilisation(range(4)), ClipFraction(0, 3), torch.tensor([torch.nan, 1.0])
    used.update(x)
    clipped.update(x, torch.tensor(1.0))
    assert (float(used.compute()), float(clipped.compute())) == (0.25, 0.0)


@pytest.mark.parametrize("codes", [[0.5], [2.0], [0.0], [float("inf")], [-9.0]])
def test_other_codes_are_refused(codes):
    used = CodeUtilisation((-1, 1))
    with pytest.raises(ValueError, match=r"^CodeUtilisation: 2 codes from -1 to 1 are possible, got others[.]$"):
        used.update(torch.tensor(codes))
    assert int(used.counts.sum()) == 0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"^CodeUtilisation: possible must hold at least one code[.]$"):
        CodeUtilisation([])
    with pytest.raises(ValueError, match=r"^ClipFraction: high must be above low, got 3 and 3[.]$"):
        ClipFraction(3, 3)
    with pytest.raises(
        ValueError, match=r"^FlipRate: before and after must have the same shape, got \(2,\) and \(3,\)"
    ):
        FlipRate().update(torch.ones(2), torch.ones(3))
