"""Tables of step functions against the functions, on the numbers next to each boundary."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import step_function_dictionary


def staircase(x):
    return (x * 1.7 + 2).round().clamp(0, 4) / 4


FUNCTIONS = {
    "sign": (torch.sign, 3),
    "heaviside": (lambda x: (x >= 0.3).to(x.dtype), 2),
    "heaviside, strict": (lambda x: (x > 0.3).to(x.dtype), 2),
    "staircase": (staircase, 5),
    "falling": (lambda x: -staircase(x), 5),
    "quantised relu": (lambda x: (x * 9.1).floor().clamp(0, 15) / 15, 16),
    "constant": (torch.ones_like, 1),
}


def look_up(x, boundaries, levels):
    return levels[torch.bucketize(x, boundaries, right=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_is_the_function_next_to_every_boundary(name, dtype):
    function, levels = FUNCTIONS[name]
    boundaries, table = step_function_dictionary(function, levels, dtype)
    assert boundaries.dtype == table.dtype == dtype
    assert (len(boundaries), len(table)) == (levels - 1, levels)
    up, down = boundaries, boundaries
    for _ in range(4):
        up, down = torch.nextafter(up, up + torch.inf), torch.nextafter(down, down - torch.inf)
        for x in (boundaries, up, down):
            assert torch.equal(look_up(x, boundaries, table), function(x))
    x = torch.randn(2000, dtype=dtype)
    assert torch.equal(look_up(x, boundaries, table), function(x))


@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    x=st.lists(st.floats(-(2.0**59), 2.0**59, width=32), min_size=1),
    slope=st.floats(-4, 4, width=32).filter(lambda slope: abs(slope) > 1e-3),
)
def test_the_table_is_the_function_everywhere(name, x, slope):
    function, levels = FUNCTIONS[name]

    def scaled(x):
        return function(x * slope)

    x = torch.tensor(x)
    assert torch.equal(look_up(x, *step_function_dictionary(scaled, levels)), scaled(x))


def test_numbers_outside_the_range_are_not_told_apart():
    boundaries, levels = step_function_dictionary(torch.sign, 3, lowest=0.5, highest=2.0)
    assert (boundaries.tolist(), levels.tolist()) == ([], [1.0])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (torch.relu, ValueError, "more than 5 levels"),
        (lambda x: (x.abs() >= 1).to(x.dtype) + (x >= 3).to(x.dtype) * 3, ValueError, "rises and falls"),
        (torch.sum, ValueError, "element-wise"),
        (torch.log, ValueError, "finite"),
        (lambda x: x >= 0, TypeError, "returned torch.bool"),
    ],
)
def test_other_functions_are_refused(function, error, message):
    with pytest.raises(error, match=message):
        step_function_dictionary(function, 5, lowest=-10.0)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        step_function_dictionary(torch.sign, 3, torch.float16)
