"""An expression of one number computes what torch computes, in the same type."""

import numpy as np
import pytest
import torch

from lightning_polystep.tape.fuse.expressions import NoExpressionError, Symbol, constant, expression, has_expression

aten = torch.ops.aten
FLOAT, WHOLE, TRUTH = torch.float32, torch.int64, torch.bool
NUMBERS = {
    FLOAT: [0.0, -0.0, 0.3, -1.7, 2.5, 3.5, 100.0, -100.0, float("inf"), float("-inf"), float("nan")],
    torch.float64: [0.0, 0.1, -2.5],
    WHOLE: [0, 3, -4],
    TRUTH: [False, True],
}


@pytest.mark.parametrize(
    ("function", "dtypes", "result"),
    [
        *[(f, [FLOAT], FLOAT) for f in (aten.neg.default, aten.relu.default, aten.abs.default, aten.exp.default,
                                        aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default,
                                        aten.sigmoid.default, aten.tanh.default, aten.reciprocal.default,
                                        aten.hardtanh.default, aten.square.default)],
        *[(f, [FLOAT, FLOAT], FLOAT) for f in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor)],
        *[(f, [FLOAT, WHOLE], FLOAT) for f in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor)],
        *[(f, [TRUTH, FLOAT], FLOAT) for f in (aten.mul.Tensor, aten.add.Tensor)],
        *[(f, [WHOLE, WHOLE], WHOLE) for f in (aten.mul.Tensor, aten.add.Tensor)],
        (aten.div.Tensor, [WHOLE, WHOLE], FLOAT),
        *[(f, [FLOAT, FLOAT], TRUTH) for f in (aten.gt.Tensor, aten.le.Tensor, aten.eq.Tensor, aten.ne.Tensor)],
        *[(f, [WHOLE, FLOAT], TRUTH) for f in (aten.ge.Tensor, aten.lt.Tensor)],
        *[(f, [TRUTH, TRUTH], TRUTH) for f in (aten.logical_and.default, aten.bitwise_or.Tensor)],
        (aten.bitwise_not.default, [TRUTH], TRUTH),
        (aten.logical_not.default, [FLOAT], TRUTH),
        (aten.where.self, [TRUTH, FLOAT, FLOAT], FLOAT),
        (aten.lerp.Tensor, [torch.float64, torch.float64, torch.float64], torch.float64),
    ],
    ids=str,
)  # fmt: skip
def test_an_expression_computes_what_torch_computes(function, dtypes, result):
    grids = np.meshgrid(*[np.arange(len(NUMBERS[dtype])) for dtype in dtypes], indexing="ij")
    for places in zip(*(grid.ravel() for grid in grids), strict=True):
        tensors = [
            torch.tensor(NUMBERS[dtype][place], dtype=dtype)[None] for dtype, place in zip(dtypes, places, strict=True)
        ]
        names = {f"x{i}": tensor.numpy()[0] for i, tensor in enumerate(tensors)}
        symbols = [Symbol(f"x{i}", dtype) for i, dtype in enumerate(dtypes)]
        text = expression(function, symbols, {}, result)
        with np.errstate(all="ignore"):
            found = torch.tensor(
                np.asarray(eval(text, {"np": np}, names)).astype(torch.empty(0, dtype=result).numpy().dtype)
            )
        expected = function(*tensors)[0]
        assert expected.dtype == result
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "numbers", "options"),
    [
        (aten.clamp.default, [None, 1.0], {}), (aten.clamp.default, [-0.5], {}), (aten.clamp_min.default, [0.1], {}),
        (aten.clamp_max.default, [0.1], {}), (aten.add.Tensor, [0.5], {"alpha": 3}), (aten.rsub.Scalar, [0.5], {}),
        (aten.pow.Tensor_Scalar, [2], {}), (aten.pow.Tensor_Scalar, [3], {}), (aten.hardtanh.default, [-2.0, 0.5], {}),
        (aten.gt.Scalar, [0.3], {}), (aten.masked_fill.Scalar, None, {}),
    ],
)  # fmt: skip
def test_numbers_and_options_are_part_of_it(function, numbers, options):
    if numbers is None:
        text = expression(function, [Symbol("x", FLOAT), Symbol("m", TRUTH), constant(0.5, FLOAT)], {}, FLOAT)
        assert eval(text, {"np": np, "x": np.float32(2), "m": True}) == np.float32(0.5)
        return
    dtype = TRUTH if function is aten.gt.Scalar else FLOAT
    symbols = [Symbol("x", FLOAT), *(None if n is None else constant(n, FLOAT) for n in numbers)]
    text = expression(function, symbols, options, dtype)
    for x in (-1.7, 0.0, 0.3, 2.5):
        expected = function(torch.tensor([x]), *numbers, **options)[0]
        assert np.isclose(eval(text, {"np": np, "x": np.float32(x)}), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "dtype", "options"),
    [
        (aten.div.Tensor_mode, FLOAT, {"rounding_mode": "floor"}),
        (aten.round.decimals, FLOAT, {"decimals": 2}),
        (aten.mul.Tensor, torch.bfloat16, {}),
        (aten.erf.default, FLOAT, {}),
        (aten.bitwise_and.Tensor, WHOLE, {}),
    ],
)
def test_what_has_no_expression_says_so(function, dtype, options):
    symbols = [Symbol("x", dtype), Symbol("y", dtype)]
    with pytest.raises(NoExpressionError):
        expression(function, symbols, options, dtype)


def test_an_operator_without_one_is_known():
    assert has_expression(aten.mul.Tensor)
    assert not has_expression(aten.erf.default)
