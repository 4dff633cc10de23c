"""The attention modules are their functions between projections."""

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, argmax_attention, slot_argmax_attention
from lightning_polystep.layers import ArgmaxAttention, SlotArgmaxAttention
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training, problem


class FirstOf(nn.Module):
    """Attend over the six features as three tokens of two, and classify the first."""

    def __init__(self):
        super().__init__()
        self.embed, self.attend, self.classify = nn.Linear(2, 8), ArgmaxAttention(8, 2), nn.Linear(24, 3)

    def forward(self, x):
        return self.classify(self.attend(self.embed(x.view(-1, 3, 2))).flatten(1))


def test_each_head_is_the_function():
    layer, query, memory = ArgmaxAttention(8, 2), torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    heads = [
        argmax_attention(
            layer.q_proj(query)[..., part], layer.k_proj(memory)[..., part], layer.v_proj(memory)[..., part]
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.allclose(layer(query, memory), layer.out_proj(torch.cat(heads, -1)), atol=1e-6)


def test_the_query_is_key_and_value_by_default():
    layer, x = ArgmaxAttention(8, 2), torch.randn(3, 5, 8)
    assert torch.equal(layer(x), layer(x, x, x))
    assert torch.allclose(layer(x[0]), layer(x)[0], atol=1e-6)


def test_key_and_value_may_have_other_sizes():
    layer = ArgmaxAttention(8, 2, kdim=3, vdim=5, bias=False)
    assert layer(torch.randn(2, 4, 8), torch.randn(2, 6, 3), torch.randn(2, 6, 5)).shape == (2, 4, 8)
    assert all(name.endswith("weight") for name, _ in layer.named_parameters())


def test_padding_is_never_taken():
    layer, x = ArgmaxAttention(8, 2, return_indices=True), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True], [True] * 5])
    output, indices = layer(x, key_padding_mask=padding)
    assert indices.shape == (3, 2, 5)
    assert indices[1].max() <= 1
    assert (indices[2] == -1).all()
    assert torch.allclose(output[2], layer.out_proj.bias.expand(5, 8))
    # Products of other shapes may round in another way.
    torch.testing.assert_close(output[1], layer(x[1:2, :], x[1:2, :2]).output[0])


def test_causal_queries_do_not_look_ahead():
    layer, x = ArgmaxAttention(8, 2, is_causal=True, return_indices=True), torch.randn(3, 5, 8)
    assert (layer(x).indices <= torch.arange(5)).all()
    assert (layer(x).indices[..., 0] == 0).all()


def test_masks_combine():
    layer, x = ArgmaxAttention(8, 2, is_causal=True, return_indices=True), torch.randn(3, 5, 8)
    padding, mask = torch.tensor([[True] + [False] * 4] * 3), ~torch.eye(5, dtype=torch.bool)
    indices = layer(x, key_padding_mask=padding, attn_mask=mask).indices
    assert (indices[..., :2] == -1).all()
    assert (indices[..., 2] == 1).all()


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike(copied):
    for layer, x in ((ArgmaxAttention(8, 2), torch.randn(3, 5, 8)), (SlotArgmaxAttention(8), torch.randn(3, 8))):
        assert torch.equal(copied(layer)(x), layer(x))


def test_state_dict_round_trip():
    for build, x in (
        (lambda: ArgmaxAttention(8, 2), torch.randn(3, 5, 8)),
        (lambda: SlotArgmaxAttention(8), torch.randn(3, 8)),
    ):
        source, target = build(), build()
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_follows_the_dtype_of_the_network(dtype):
    assert ArgmaxAttention(8, 2).to(dtype)(torch.randn(3, 5, 8, dtype=dtype)).dtype == dtype
    assert SlotArgmaxAttention(8).to(dtype)(torch.randn(3, 8, dtype=dtype)).dtype == dtype


def test_vmap_over_parameters_equals_the_loop():
    assert candidates_equal_the_loop(ArgmaxAttention(8, 2), torch.randn(3, 5, 8), exact=False)
    assert candidates_equal_the_loop(SlotArgmaxAttention(8), torch.randn(3, 8), exact=False)


def test_slots_are_the_function():
    layer, x = SlotArgmaxAttention(8, 5, return_indices=True), torch.randn(9, 8)
    expected = slot_argmax_attention(x, layer.keys, layer.value(x), return_indices=True)
    assert layer.keys.shape == (5, 8)
    assert all(torch.equal(a, b) for a, b in zip(layer(x), expected, strict=True))


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(3, 5, 8)
    with pytest.raises(NonDifferentiableError, match=r"SlotArgmaxAttention\(embed_dim=8, num_slots=8\)"):
        SlotArgmaxAttention(8)(x).sum().backward()
    with pytest.raises(NonDifferentiableError, match=r"ArgmaxAttention\(embed_dim=8, num_heads=2\)"):
        ArgmaxAttention(8, 2)(x).sum().backward()
    layer = ArgmaxAttention(8, 2, on_backward="zero")
    layer(x).sum().backward()
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert torch.equal(projection.weight.grad, torch.zeros(8, 8))


def test_bad_options_are_refused():
    for heads in (0, 3):
        with pytest.raises(ValueError, match=r"^ArgmaxAttention: num_heads must divide embed_dim, .*[.]$"):
            ArgmaxAttention(8, heads)
    with pytest.raises(ValueError, match=r"^SlotArgmaxAttention: num_slots must be .*[.]$"):
        SlotArgmaxAttention(8, 0)
    for layer in (ArgmaxAttention, SlotArgmaxAttention):
        with pytest.raises(ValueError, match=rf"^{layer.__name__}: on_backward must be .*[.]$"):
            layer(8, on_backward="ste")
    with pytest.raises(TypeError, match=r"^ArgmaxAttention\(.*\): key_padding_mask must be boolean, .*[.]$"):
        ArgmaxAttention(8)(torch.ones(1, 2, 8), key_padding_mask=torch.zeros(1, 2))


@pytest.mark.parametrize(
    "build",
    [FirstOf, lambda: nn.Sequential(nn.Linear(6, 8), SlotArgmaxAttention(8), nn.Linear(8, 3))],
    ids=["tokens", "slots"],
)
def test_a_network_of_attention_learns(build):
    losses = losses_of_training(build())
    assert problem()[0].shape[1] == 6
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
