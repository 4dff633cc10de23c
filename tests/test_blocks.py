"""Which parameters become which blocks."""

import copy

import pytest
import torch
from torch import nn

from lightning_polystep.blocks import find_blocks, flipped_one_by_one
from lightning_polystep.layers import LIF, QuantLinear
from lightning_polystep.optimizer import PolyStep
from tests.helpers.parity import CASES


def blocks_of(module, groups=None, **options):
    optimizer = PolyStep(list(module.parameters()) if groups is None else groups, **options)
    return find_blocks(module, optimizer.param_groups)


def names(blocks):
    return {block.name: block.parameter_names for block in blocks}


class Zoo(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.linear, self.no_bias = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
        self.convolution = nn.Conv2d(2, 4, (3, 2))
        self.grouped, self.depthwise = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)
        self.conv1d, self.conv3d, self.transposed = nn.Conv1d(2, 3, 3), nn.Conv3d(1, 2, 2), nn.ConvTranspose2d(2, 3, 2)
        self.embedding, self.bag = nn.Embedding(5, 3), nn.EmbeddingBag(4, 2)
        self.lstm, self.cell = nn.LSTM(3, 2, num_layers=2, bidirectional=True), nn.GRUCell(3, 2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.batch_norm, self.group_norm = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.layer_norm, self.prelu, self.bilinear = nn.LayerNorm((2, 3)), nn.PReLU(4), nn.Bilinear(2, 3, 2)
        self.neurons = LIF(torch.full((4,), 0.9), 1.0, learn_beta=True, learn_threshold=True)
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.table = nn.ParameterDict({"a": nn.Parameter(torch.randn(2, 3, 4))})
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


@pytest.mark.parametrize("subspace", ["inputs", "gaussian", "full"])
@pytest.mark.parametrize("build", [Zoo, *[case.build for case in CASES]])
def test_every_parameter_is_in_exactly_one_block(build, subspace):
    module = build()
    blocks = blocks_of(module, subspace=subspace)
    held = [parameter for block in blocks for parameter in block.parameters]
    assert len(held) == len(set(held))
    assert set(held) == set(module.parameters())
    for block in blocks:
        assert block.rows * block.dim == sum(parameter.numel() for parameter in block.parameters)
        for parameter, name in zip(block.parameters, block.parameter_names, strict=True):
            assert module.get_parameter(name) is parameter


def test_linear_and_convolution_are_sites_and_nothing_else_is():
    sites = {
        block.name: (block.rows, block.dim, block.has_bias) for block in blocks_of(Zoo()) if block.site is not None
    }
    assert sites == {
        "linear": (4, 4, True),
        "no_bias": (2, 4, False),
        "convolution": (4, 13, True),
        "attention.out_proj": (4, 5, True),
    }


def test_other_parameters_say_why_they_are_not():
    blocks = {block.name: block for block in blocks_of(Zoo())}
    for name in ("embedding.weight", "lstm.bias_hh_l0", "batch_norm.weight"):
        assert blocks[name].site is None
        assert "not a Linear or Conv2d weight" in blocks[name].remark
    for name in ("lstm.weight_hh_l0", "grouped.weight"):
        assert blocks[name].site is None
        assert blocks[name].subspace == "inputs", "the tape may show them"
    assert blocks["embedding.weight"].subspace == "gaussian"
    assert (blocks["embedding.weight"].rows, blocks["embedding.weight"].dim) == (5, 3)
    assert (blocks["batch_norm.weight"].rows, blocks["batch_norm.weight"].dim) == (4, 1)
    assert (blocks["scalar"].rows, blocks["scalar"].dim) == (1, 1)
    assert blocks["batch_norm.weight"].subspace == "full"


def test_scales_are_those_of_the_layer():
    blocks = {block.name: block for block in blocks_of(Zoo())}
    assert blocks["neurons.beta"].scale == LIF.search_scale["beta"] == 0.1
    assert blocks["neurons.threshold"].scale == LIF.search_scale["threshold"] == 0.3
    assert {block.scale for name, block in blocks.items() if not name.startswith("neurons")} == {1.0}


@pytest.mark.parametrize(("particle_dim", "dim"), [(None, 2), (1, 1), (3, 3), (5, 4), (100, 12)])
def test_the_full_space_is_cut_into_equal_particles(particle_dim, dim):
    (block,) = blocks_of(nn.Linear(4, 3, bias=False), subspace="full", particle_dim=particle_dim)
    assert (block.rows, block.dim, block.site) == (12 // dim, dim, None)


def test_blocks_come_in_the_order_of_the_module():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    assert list(names(blocks_of(module, list(reversed(list(module.parameters())))))) == ["0", "1.weight", "1.bias", "2"]


def test_parameters_outside_the_groups_are_left_alone():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert names(blocks_of(module, module[1].parameters())) == {"1": ("1.weight", "1.bias")}
    assert names(blocks_of(module[0], [module[0].weight])) == {"": ("weight",)}
    assert names(blocks_of(module[0], [module[0].bias])) == {"bias": ("bias",)}


def test_weight_and_bias_of_two_groups_move_apart():
    layer = nn.Linear(2, 3)
    blocks = blocks_of(layer, [{"params": [layer.weight], "lr": 1.0}, {"params": [layer.bias], "lr": 2.0}])
    assert names(blocks) == {"": ("weight",), "bias": ("bias",)}
    assert [block.group["lr"] for block in blocks] == [1.0, 2.0]
    assert not blocks[0].has_bias


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_not_frozen_is_still_trained(frozen):
    layer = nn.Linear(2, 3)
    getattr(layer, frozen).requires_grad_(False)
    trainable = [parameter for block in blocks_of(layer) if block.trainable for parameter in block.parameters]
    assert trainable == [parameter for parameter in layer.parameters() if parameter.requires_grad]


def test_a_shared_weight_is_one_block_that_is_not_shifted():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    blocks = {block.name: block for block in blocks_of(nn.Sequential(first, second))}
    assert set(blocks) == {"0", "0.bias", "1.bias"}
    assert not blocks["0"].shiftable
    assert blocks["0"].remark == "weight shared between modules"


def test_one_layer_under_two_names_is_one_block():
    layer = nn.Linear(3, 3)
    blocks = blocks_of(nn.Sequential(layer, nn.ReLU(), layer))
    assert [parameter for block in blocks for parameter in block.parameters] == [layer.weight, layer.bias]
    assert [(block.shiftable, block.shared, block.remark) for block in blocks] == [(True, False, "")]


def test_a_second_name_for_a_part_is_no_second_place():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            self.network, self.head = self.net, self.net[2]
            self.layers = nn.ModuleList(self.net)

    assert [(b.name, b.shiftable, b.remark) for b in blocks_of(Named())] == [("net.0", True, ""), ("net.2", True, "")]


def test_a_layer_with_a_forward_of_its_own_is_not_shifted():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    (block,) = blocks_of(Doubled(2, 2))
    assert not block.shiftable
    assert block.remark == "module computes its output itself"


# What the sites see.


@pytest.mark.parametrize(("layer", "dim"), [(nn.Linear(3, 2), 3), (nn.Conv2d(3, 2, 2), 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_binary_weights_and_their_bias_are_blocks_of_their_own(layer, dim, bias):
    layer = copy.deepcopy(layer)
    if not bias:
        layer.bias = None
    (block,) = blocks_of(nn.Sequential(layer))
    weight, *biases = flipped_one_by_one(block)
    assert (weight.name, weight.rows, weight.dim, weight.subspace) == ("0.weight", 2, dim, "signs")
    assert (weight.parameters, weight.by_signs, weight.site) == ((layer.weight,), True, None)
    assert [(each.name, each.rows, each.dim, each.subspace) for each in biases] == [("0.bias", 2, 1, "full")] * bias
    assert all(each.group is block.group and not each.learns_inputs for each in (weight, *biases))


def test_what_has_no_binary_weights_is_not_flipped():
    module = nn.Sequential(QuantLinear(3, 2, weight_format="binary"), nn.Linear(2, 2), nn.LayerNorm(2))
    blocks = {block.name: block for block in blocks_of(module, subspace="flips")}
    assert [blocks[name].subspace for name in ("0", "1", "2.weight")] == ["flips", "inputs", "full"]
    assert blocks["1"].remark == "its weights are not binary, so there is nothing to flip"
