"""The two-valued sign: its values, its ties, its refusals."""

import pytest
import torch

from lightning_polystep.functional import NonDifferentiableError, sign


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("positive_on", "at_tie"), [("ge", 1.0), ("gt", -1.0)])
def test_values_and_ties(positive_on, at_tie, dtype):
    x = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1.0, torch.inf, torch.nan], dtype=dtype)
    expected = torch.tensor([-1.0, -1.0, at_tie, at_tie, 1.0, 1.0, -1.0], dtype=dtype)
    output = sign(x, positive_on=positive_on)
    assert output.dtype == dtype
    assert torch.equal(output, expected)


def test_backward_raises_or_gives_zeros():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match="hidden"):
        sign(x, name="hidden").sum().backward()
    sign(x, on_backward="zero").sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_vmap_equals_the_loop():
    x = torch.randn(5, 3)
    assert torch.equal(torch.func.vmap(sign)(x), torch.stack([sign(row) for row in x]))


@pytest.mark.parametrize("option", ["positive_on", "on_backward"])
def test_misspelt_options_are_refused(option):
    with pytest.raises(ValueError, match=f"^sign: {option} must be .*[.]$"):
        sign(torch.ones(1), **{option: "gte"})
