"""Hard routing against a plain loop over samples, grouped and dense."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from lightning_polystep.functional import MoEOutput, NonDifferentiableError, hard_moe

EXPERTS = [torch.neg, torch.square, lambda x: x + 1, torch.abs]


def plain_route(scores):
    """The first of the largest, by Python's own max."""
    return max(range(len(scores)), key=lambda expert: (scores[expert], -expert))


@given(
    samples=st.integers(0, 12),
    experts=st.integers(1, 4),
    ties=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_a_loop_over_samples(samples, experts, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    x, scores = (torch.randn(samples, size, generator=generator) for size in (3, experts))
    scores = scores.round() if ties else scores
    output, routing = hard_moe(x, scores, EXPERTS[:experts], return_routing=True)
    route = [plain_route(row) for row in scores.tolist()]
    assert routing.route.tolist() == route
    assert routing.load.tolist() == [route.count(expert) for expert in range(experts)]
    for sample, expert in enumerate(route):
        assert torch.equal(output[sample], EXPERTS[expert](x[sample]))
        second = max((s for e, s in enumerate(scores[sample].tolist()) if e != expert), default=-float("inf"))
        assert routing.margin[sample].item() == pytest.approx(scores[sample, expert].item() - second, abs=1e-6)


def test_of_equal_scores_the_lowest_index_wins():
    scores = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, -1.0, 0.0], [0.0, torch.nan, 9.0]])
    routing = hard_moe(torch.ones(4, 1), scores, EXPERTS[:3], return_routing=True).routing
    assert routing.route.tolist() == [0, 1, 0, 1]
    assert routing.margin[:3].tolist() == [0, 0, 0]


def test_only_the_routed_expert_computes():
    seen = {}

    def expert(index):
        def run(x):
            seen[index] = x[:, 0].tolist()
            return x

        return run

    scores = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    hard_moe(torch.arange(3.0)[:, None], scores, [expert(index) for index in range(3)])
    assert seen == {0: [1.0], 1: [0.0, 2.0]}


def test_leading_and_feature_dimensions():
    x, scores = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4)
    output = hard_moe(x, scores, EXPERTS)
    assert output.shape == x.shape
    for i in range(2):
        for j in range(3):
            assert torch.equal(output[i, j], EXPERTS[plain_route(scores[i, j].tolist())](x[i, j]))
    assert hard_moe(x, scores, [lambda x: x.sum((1, 2))] * 4).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    x, scores = torch.randint(-4, 5, (9, 3)), torch.randint(-9, 10, (9, 4))
    expected = hard_moe(x.float(), scores.float(), EXPERTS)
    output = hard_moe(x.to(dtype), scores.to(dtype), EXPERTS)
    assert output.dtype == dtype
    assert torch.equal(output.float(), expected)


@pytest.mark.parametrize("batched", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("grad", [False, True])
def test_vmap_equals_the_loop(batched, grad):
    arguments = [
        value if dim == 0 else value[0]
        for value, dim in zip((torch.randn(5, 7, 3), torch.randn(5, 7, 4).round()), batched, strict=True)
    ]

    def run(x, scores):
        return hard_moe(x, scores, EXPERTS, return_routing=True)

    with torch.set_grad_enabled(grad):
        together = torch.func.vmap(run, in_dims=batched)(*arguments)
    for i in range(5):
        alone = run(*(value[i] if dim == 0 else value for value, dim in zip(arguments, batched, strict=True)))
        assert torch.equal(together.output[i], alone.output)
        # What does not depend on the batched argument comes back once per candidate as well.
        assert all(torch.equal(a[i], b) for a, b in zip(together.routing, alone.routing, strict=True))


def test_routed_experts_alone_compute_when_only_their_weights_are_batched():
    rows = []

    def run(weight):
        def expert(x):
            rows.append(len(x))
            return x @ weight

        return hard_moe(x, scores, [expert, torch.neg])

    x, scores, weights = torch.randn(6, 3), torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 4), torch.randn(5, 3, 3)
    together = torch.func.vmap(run)(weights)
    assert rows == [2]
    assert torch.allclose(together, torch.stack([run(weight) for weight in weights]))


def test_backward_raises_or_gives_zeros():
    experts = [nn.Linear(3, 3), nn.Linear(3, 3)]
    x, scores = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    with pytest.raises(NonDifferentiableError, match="hidden"):
        hard_moe(x, scores, experts, name="hidden").sum().backward()
    hard_moe(x, scores, experts, on_backward="zero").sum().backward()
    for tensor in (x, scores, experts[0].weight, experts[1].bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_per_sample_gradients_are_zero_on_request():
    def loss(x, scores):
        return hard_moe(x[None], scores[None], EXPERTS, on_backward="zero").sum() + x.sum()

    gradient = torch.func.vmap(torch.func.grad(loss))(torch.randn(5, 3), torch.randn(5, 4))
    assert torch.equal(gradient, torch.ones(5, 3))


def test_routing_comes_only_on_request():
    x, scores = torch.randn(6, 3), torch.randn(6, 4)
    assert isinstance(hard_moe(x, scores, EXPERTS), torch.Tensor)
    assert isinstance(hard_moe(x, scores, EXPERTS, return_routing=True), MoEOutput)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("at least one", {"experts": []}),
        ("do not give 4 experts", {"scores": torch.ones(6, 3)}),
        ("do not give 4 experts", {"scores": torch.ones(5, 4)}),
        ("do not give 4 experts", {"scores": torch.ones(4)}),
        ("on_backward must be", {"on_backward": "ste"}),
    ],
)
def test_bad_input_is_refused_in_one_sentence(message, changes):
    arguments = {"x": torch.ones(6, 3), "scores": torch.ones(6, 4), "experts": EXPERTS, "name": "hidden"}
    with pytest.raises(ValueError, match=f"^hidden: .*{message}.*[.]$"):
        hard_moe(**{**arguments, **changes})
