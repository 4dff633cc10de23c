"""Hard attention against a plain loop over queries, with ties and masks."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import (
    AttentionOutput,
    NonDifferentiableError,
    argmax_attention,
    slot_argmax_attention,
)


def plain(query, key, value, allowed):
    """One head: the index of the first of the best allowed keys, by Python's own comparison."""
    output, indices = [], []
    for row, mask in zip(query, allowed, strict=True):
        scores = {s: sum(a * b for a, b in zip(row, k, strict=True)) for s, k in enumerate(key) if mask[s]}
        best = min((s for s in scores if scores[s] == max(scores.values())), default=-1)
        indices.append(best)
        output.append(value[best] if best >= 0 else [0.0] * len(value[0]))
    return output, indices


@given(
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    causal=st.booleans(),
    masked=st.sampled_from((None, 0.3, 0.9)),
    seed=st.integers(0, 2**32),
)
def test_equals_a_loop_over_queries(queries, keys, causal, masked, seed):
    """With small whole numbers, whose scores are exact and often tie."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randint(-2, 3, (2, tokens, size), generator=generator).float()
        for tokens, size in ((queries, 3), (keys, 3), (keys, 4))
    )
    mask = None if masked is None else torch.rand(2, queries, keys, generator=generator) > masked
    output, indices = argmax_attention(query, key, value, mask, is_causal=causal, return_indices=True)
    allowed = torch.ones(2, queries, keys, dtype=torch.bool) if mask is None else mask
    if causal:
        allowed = allowed & (torch.arange(keys) <= torch.arange(queries)[:, None])
    for sample in range(2):
        expected = plain(*(tensor[sample].tolist() for tensor in (query, key, value, allowed)))
        assert (output[sample].tolist(), indices[sample].tolist()) == expected


def test_of_equal_scores_the_lowest_index_wins():
    key, value = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    assert argmax_attention(torch.tensor([[1.0], [0.0], [-1.0]]), key, value).tolist() == [[20], [10], [10]]


def test_a_query_without_keys_gets_zeros():
    output, indices = argmax_attention(
        torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 5), torch.tensor([[False], [True]]), return_indices=True
    )
    assert output.tolist() == [[0] * 5, [1] * 5]
    assert indices.tolist() == [-1, 0]


def test_is_the_limit_of_soft_attention():
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    soft = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1e6)
    assert torch.allclose(argmax_attention(query, key, value), soft, atol=1e-4)


def test_leading_dimensions_broadcast():
    query, key, value = torch.randn(4, 1, 5, 8), torch.randn(3, 7, 8), torch.randn(3, 7, 6)
    output = argmax_attention(query, key, value)
    assert torch.equal(
        output, argmax_attention(query.expand(4, 3, 5, 8), key.expand(4, 3, 7, 8), value.expand(4, 3, 7, 6))
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types(dtype):
    query, key, value = (torch.randint(-2, 3, (5, 4)) for _ in range(3))
    expected = argmax_attention(query.float(), key.float(), value.float())
    output = argmax_attention(query.to(dtype), key.to(dtype), value.to(dtype))
    assert output.dtype == dtype
    assert torch.equal(output.float(), expected)


@pytest.mark.parametrize("batched", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)])
def test_vmap_equals_the_loop(batched):
    sizes = (5, 4), (6, 4), (6, 3)
    arguments = [
        torch.randint(-2, 3, (3, 2, *size) if dim == 0 else (2, *size)).float()
        for size, dim in zip(sizes, batched, strict=True)
    ]
    together = torch.func.vmap(argmax_attention, in_dims=batched)(*arguments)
    for i in range(3):
        alone = (value[i] if dim == 0 else value for value, dim in zip(arguments, batched, strict=True))
        assert torch.equal(together[i], argmax_attention(*alone))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_backward_raises_or_gives_zeros(which):
    arguments = [torch.randn(2, 5, 4), torch.randn(2, 6, 4), torch.randn(2, 6, 3)]
    arguments[which].requires_grad_()
    with pytest.raises(NonDifferentiableError, match="hidden"):
        argmax_attention(*arguments, name="hidden").sum().backward()
    argmax_attention(*arguments, on_backward="zero").sum().backward()
    assert torch.equal(arguments[which].grad, torch.zeros_like(arguments[which]))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, "query and key must be", {"query": torch.ones(5, 3)}),
        (ValueError, "query and key must be", {"query": torch.ones(4)}),
        (ValueError, "same number of tokens", {"value": torch.ones(5, 4)}),
        (ValueError, "at least one", {"key": torch.ones(0, 4), "value": torch.ones(0, 4)}),
        (TypeError, "attn_mask must be boolean", {"attn_mask": torch.zeros(5, 6)}),
        (ValueError, "on_backward must be", {"on_backward": "ste"}),
    ],
)
def test_bad_input_is_refused_in_one_sentence(error, message, changes):
    arguments = {"query": torch.ones(5, 4), "key": torch.ones(6, 4), "value": torch.ones(6, 4), "name": "hidden"}
    with pytest.raises(error, match=f"^hidden: .*{message}.*[.]$"):
        argmax_attention(**{**arguments, **changes})


def test_slots_are_the_formula_of_the_paper():
    x, keys, value = torch.randn(9, 4), torch.randn(8, 4), torch.randn(9, 4)
    output, indices = slot_argmax_attention(x, keys, value, return_indices=True)
    slot = (x @ keys.t()).argmax(dim=-1)
    assert torch.equal(indices, slot)
    assert torch.equal(output, value * torch.sigmoid(keys[slot]))
    assert isinstance(slot_argmax_attention(x, keys, value), torch.Tensor)
    assert isinstance(slot_argmax_attention(x, keys, value, return_indices=True), AttentionOutput)


def test_of_equal_slots_the_lowest_index_wins():
    assert slot_argmax_attention(torch.ones(1, 2), torch.ones(3, 2), torch.ones(1, 2), return_indices=True).indices == 0


def test_vmap_over_slots_equals_the_loop():
    x, keys, value = torch.randn(9, 4), torch.randn(3, 8, 4), torch.randn(9, 4)
    together = torch.func.vmap(lambda k: slot_argmax_attention(x, k, value))(keys)
    assert torch.allclose(together, torch.stack([slot_argmax_attention(x, k, value) for k in keys]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_backward_through_slots_raises_or_gives_zeros(which):
    arguments = [torch.randn(9, 4), torch.randn(8, 4), torch.randn(9, 4)]
    arguments[which].requires_grad_()
    with pytest.raises(NonDifferentiableError, match="hidden"):
        slot_argmax_attention(*arguments, name="hidden").sum().backward()
    slot_argmax_attention(*arguments, on_backward="zero").sum().backward()
    assert torch.equal(arguments[which].grad, torch.zeros_like(arguments[which]))


@pytest.mark.parametrize("keys", [torch.ones(4), torch.ones(0, 4), torch.ones(8, 3)])
def test_slots_that_do_not_fit_are_refused(keys):
    with pytest.raises(ValueError, match=r"^hidden: keys of shape .*[.]$"):
        slot_argmax_attention(torch.ones(9, 4), keys, torch.ones(9, 4), name="hidden")
