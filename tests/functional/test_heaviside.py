"""The hard step: its values, its ties, and what happens when a gradient reaches it."""

import pytest
import torch

from lightning_polystep.functional import NonDifferentiableError, heaviside


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("spike_on", "at_tie"), [("ge", 1.0), ("gt", 0.0)])
def test_values_and_ties(spike_on, at_tie, requires_grad):
    x = torch.tensor(
        [-torch.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, torch.inf, torch.nan], requires_grad=requires_grad
    )
    expected = torch.tensor([0.0, 0.0, 0.0, at_tie, at_tie, 1.0, 1.0, 1.0, 0.0])
    assert torch.equal(heaviside(x, spike_on=spike_on), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_keeps_the_dtype(dtype):
    assert heaviside(torch.tensor([-1, 1], dtype=dtype)).dtype == dtype


def test_backward_raises_and_names_the_layer():
    weight = torch.ones(3, requires_grad=True)
    output = heaviside(weight * 2, name="my_layer")
    with pytest.raises(NonDifferentiableError, match=r'my_layer.*strategy="polystep".*on_backward="zero"'):
        output.sum().backward()
    assert weight.grad is None


def test_backward_zero_reaches_the_parameters_as_zeros():
    weight = torch.ones(3, requires_grad=True)
    heaviside(weight * 2, on_backward="zero").sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3))


def test_no_graph_without_grad_mode():
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert heaviside(weight).grad_fn is None
    assert heaviside(weight).grad_fn is not None


def test_functorch_gradients_are_refused_too():
    with pytest.raises(NonDifferentiableError):
        torch.func.grad(lambda x: heaviside(x).sum())(torch.ones(3))
    per_sample = torch.func.vmap(torch.func.grad(lambda x: heaviside(x, on_backward="zero").sum() + x.sum()))
    assert torch.equal(per_sample(torch.randn(4, 3)), torch.ones(4, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, on its first jvp
def test_forward_mode_is_not_silently_zero():
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(heaviside, (torch.ones(3),), (torch.ones(3),))


def test_vmap_of_a_guarded_step_equals_the_loop():
    x = torch.randn(5, 3, requires_grad=True)
    batched = torch.func.vmap(heaviside)(x)
    assert torch.equal(batched, torch.stack([heaviside(row) for row in x]))
    with pytest.raises(NonDifferentiableError):
        batched.sum().backward()


@pytest.mark.parametrize("option", ["spike_on", "on_backward"])
def test_misspelt_options_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be"):
        heaviside(torch.ones(1), **{option: "gte"})
