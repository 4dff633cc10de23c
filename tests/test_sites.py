"""Which parameters become which blocks, and what is recorded of the inputs of the sites."""

import pytest
import torch
from torch import nn

from lightning_polystep.engine import Engine
from lightning_polystep.layers import LIF, QuantLinear
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block
from lightning_polystep.sites import find_blocks, input_rows, not_recording, observing, update_statistics
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
    for name in ("grouped.weight", "embedding.weight", "lstm.bias_hh_l0", "batch_norm.weight"):
        assert blocks[name].site is None
        assert "not a Linear or Conv2d weight" in blocks[name].remark
    assert blocks["lstm.weight_hh_l0"].site is None
    assert blocks["lstm.weight_hh_l0"].subspace == "inputs", "the tape may show them"
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

CONVOLUTIONS = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"dilation": (1, 2), "bias": False},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    {"padding": 1, "padding_mode": "replicate"},
]


def seen_by_kernels(layer, inputs):
    """Each column of X by a convolution with a kernel that is 1 in one place."""
    columns = []
    for place in range(layer.weight[0].numel()):
        kernel = torch.zeros(layer.weight[0].numel(), dtype=inputs.dtype)
        kernel[place] = 1.0
        columns.append(layer._conv_forward(inputs, kernel.reshape(1, *layer.weight.shape[1:]), None).flatten())
    columns += [torch.ones_like(columns[0])] if layer.bias is not None else []
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_the_second_moment_of_a_convolution(options):
    layer = nn.Conv2d(2, 3, (3, 2), **options).double()
    inputs = torch.randn(4, 2, 6, 7, dtype=torch.float64)
    X = seen_by_kernels(layer, inputs)
    with observing(layer, blocks_of(layer)) as seen:
        output = layer(inputs)
    moment = seen.take_moments()[""]
    torch.testing.assert_close(moment, X.T @ X / len(X), rtol=1e-12, atol=1e-12)
    weights = torch.cat([p.detach().reshape(3, -1) for p in layer.parameters()], dim=1)
    torch.testing.assert_close(X @ weights.T, output.detach().permute(0, 2, 3, 1).reshape(-1, 3))


def test_an_image_without_a_batch():
    layer, image = nn.Conv2d(2, 3, 3), torch.randn(2, 5, 6)
    assert torch.equal(input_rows(layer, image, with_bias=True), input_rows(layer, image[None], with_bias=True))


def test_axes_before_the_channels_are_samples():
    layer, images = nn.Conv2d(2, 3, 3), torch.randn(4, 5, 2, 6, 6)
    rows = input_rows(layer, images, with_bias=True)
    assert torch.equal(rows, input_rows(layer, images.flatten(0, 1), with_bias=True))


class ChannelsLast(nn.Conv2d):
    """Has another idea of its input's axes."""

    def forward(self, x):
        return super().forward(x.movedim(-1, -3)).movedim(-3, -1)


class Transposed(nn.Linear):
    """Works on the axis before the last."""

    def forward(self, x):
        return super().forward(x.mT).mT


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(ChannelsLast(2, 3, 3), (4, 6, 6, 2)), (Transposed(3, 2), (5, 3, 7)), (Transposed(3, 2), (3, 4))],
)
def test_inputs_with_other_axes_are_counted_and_not_recorded(layer, shape):
    with observing(layer, blocks_of(layer)) as seen:
        layer(torch.randn(shape))
    assert seen.calls == {"": 1}
    assert seen.take_moments() == {}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3), (3,)])
def test_the_second_moment_of_a_linear_layer_over_all_its_calls(bias, shape):
    layer = nn.Linear(3, 2, bias=bias).double()
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    with observing(layer, blocks_of(layer)) as seen:
        for batch in batches:
            layer(batch)
    X = torch.cat([batch.reshape(-1, 3) for batch in batches])
    X = torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], dim=1) if bias else X
    assert seen.calls == {"": 3}
    torch.testing.assert_close(seen.take_moments()[""], X.T @ X / len(X), rtol=1e-12, atol=1e-12)
    assert seen.take_moments() == {}


def test_moments_are_symmetric_to_the_last_bit():
    layer = nn.Linear(37, 1)
    with observing(layer, blocks_of(layer)) as seen:
        layer(torch.randn(101, 37, generator=torch.Generator().manual_seed(0)))
    moment = seen.take_moments()[""]
    assert torch.equal(moment, moment.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_float32(dtype):
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with observing(layer, blocks_of(layer)) as seen:
        layer(torch.full((4096, 2), 0.1, dtype=dtype))
    expected = torch.full((2, 2), float(torch.tensor(0.1, dtype=dtype)) ** 2)
    torch.testing.assert_close(seen.take_moments()[""], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(2, 1), (200_000, 2)), (nn.Conv2d(1, 1, 3), (2000, 1, 10, 10))])
def test_of_many_samples_an_even_part_is_taken(layer, shape):
    rows = input_rows(layer, torch.randn(shape), with_bias=True)
    assert 5_000 < len(rows) <= 2 * 8_192
    assert abs(float(rows[:, 0].square().mean()) - 1) < 0.05


def test_probes_are_not_recorded():
    layer, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    with observing(layer, blocks_of(layer)) as seen:
        layer(inputs)
        calls = dict(seen.calls)
        with not_recording():
            layer(1e6 * inputs)
            layer(1e6 * inputs)
        assert seen.calls == calls
        assert seen.take_moments()[""].max() < 1e3
        layer(inputs)
        assert seen.calls == {"": 2}


def test_a_batch_that_is_not_finite_is_not_learnt():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with observing(module, blocks_of(module)) as seen:
        module[0](torch.tensor([[1.0, float("nan")]]))
        module[1](torch.ones(1, 2))
    assert set(seen.take_moments()) == {"1"}


def test_hooks_are_removed_also_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ZeroDivisionError), observing(module, blocks_of(module)):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_site_that_is_given_its_input_by_name_is_counted_and_not_recorded():
    layer = nn.Linear(2, 2)
    with observing(layer, blocks_of(layer)) as seen:
        layer(input=torch.randn(3, 2))
    assert seen.calls == {"": 1}
    assert seen.take_moments() == {}


def test_the_running_average_is_exact_at_first_and_forgets_later():
    moments = [torch.full((1, 1), float(value), dtype=torch.float64) for value in range(1, 26)]
    known = None
    for number, moment in enumerate(moments[:20], start=1):
        known = update_statistics(known, moment)
        assert float(known.moment) == pytest.approx((number + 1) / 2)
        assert known.batches == number
    expected = 10.5
    for value in range(21, 26):
        known = update_statistics(known, moments[value - 1])
        expected += (value - expected) / 20
    assert float(known.moment) == pytest.approx(expected)


def test_the_first_moment_is_not_changed_in_place():
    moment = torch.ones(2, 2, dtype=torch.float64)
    known = update_statistics(None, moment)
    update_statistics(known, 3 * moment)
    assert torch.equal(moment, torch.ones(2, 2, dtype=torch.float64))


def test_blocks_are_told_apart_by_identity():
    """They are keys of dicts, and hold tensors that do not compare to one truth value."""
    first, second = blocks_of(nn.Linear(1, 1)), blocks_of(nn.Linear(1, 1))
    assert isinstance(first[0], Block)
    assert first[0] != second[0]
    assert len({first[0], second[0]}) == 2


def test_a_bias_that_is_frozen_or_unfrozen_starts_the_average_anew():
    known = update_statistics(None, torch.eye(3, dtype=torch.float64))
    known = update_statistics(known, torch.eye(2, dtype=torch.float64))
    assert (known.moment.shape, known.batches, known.basis.shape) == ((2, 2), 1, (2, 0))


def test_what_has_no_binary_weights_is_not_flipped():
    module = nn.Sequential(QuantLinear(3, 2, weight_format="binary"), nn.Linear(2, 2), nn.LayerNorm(2))
    blocks = {block.name: block for block in blocks_of(module, subspace="flips")}
    assert [blocks[name].subspace for name in ("0", "1", "2.weight")] == ["flips", "inputs", "full"]
    assert blocks["1"].remark == "its weights are not binary, so there is nothing to flip"


class Hidden(nn.Module):
    """Weights that no Linear holds, and one whose module is not called."""

    def __init__(self):
        super().__init__()
        self.lstm, self.attention = nn.LSTM(3, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.raw, self.added = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        hidden, _ = self.lstm(x)
        mixed, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        return (mixed + self.added).mean(1) @ self.raw.t()


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
def test_inputs_of_weights_in_no_layer_are_those_that_the_tape_shows(evaluation):
    torch.manual_seed(0)
    module, x, y = Hidden(), torch.randn(16, 5, 3), torch.randint(2, (16,))
    optimizer = PolyStep(module.parameters(), seed=0, lr=0.0)
    engine = Engine(module, optimizer, evaluation=evaluation, max_candidates=50, announce=None)
    engine.step(lambda: nn.functional.cross_entropy(module(x), y))
    blocks = {block.name: block for block in engine._blocks}
    names = {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj", "raw"}
    assert blocks["added"].subspace == "gaussian"
    assert "not a Linear or Conv2d weight" in blocks["added"].remark
    if evaluation == "loop":
        assert {blocks[name].subspace for name in names} == {"gaussian"}
        return
    assert {blocks[name].subspace for name in names} == {"inputs"}
    flat = x.reshape(-1, 3)
    torch.testing.assert_close(optimizer.statistics["lstm.weight_ih_l0"].moment, (flat.T @ flat / 80).double())
    hidden = module.lstm(x)[0].detach().reshape(-1, 4)
    torch.testing.assert_close(
        optimizer.statistics["attention.in_proj_weight"].moment.float(), hidden.T @ hidden / 80, atol=1e-5, rtol=1e-4
    )
    projected = optimizer.statistics["attention.out_proj"].moment
    assert projected.shape == (5, 5)
    assert projected[-1, -1] == 1, "the constant of its bias"


def test_an_input_that_is_given_again_counts_again_unless_it_has_been_written():
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    block, also = blocks_of(nn.ModuleList([layer, other]))
    x, z = torch.randn(8, 3), torch.randn(8, 3)
    with torch.no_grad(), observing(nn.ModuleList([layer, other]), [block, also]) as seen:
        for given in (x, x, z, x):
            layer(given)
        for given in (x.clone(), x.clone(), z, x.clone()):
            other(given)
    once, apart = seen.take_inputs().values()
    torch.testing.assert_close(once[0], apart[0])
    torch.testing.assert_close(once[1], apart[1])
    half = x.T @ x / 16
    with torch.no_grad(), observing(nn.ModuleList([layer]), [block]) as seen:
        layer(x)
        layer(x.zero_())
    torch.testing.assert_close(seen.take_inputs()[block.name][0][:3, :3], half)
