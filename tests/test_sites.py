"""What is recorded of the inputs of the sites."""

import pytest
import torch
from torch import nn

from lightning_polystep.blocks import find_blocks
from lightning_polystep.engine import Engine
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block
from lightning_polystep.sites import input_rows, not_recording, observing, update_statistics


def blocks_of(module, groups=None, **options):
    optimizer = PolyStep(list(module.parameters()) if groups is None else groups, **options)
    return find_blocks(module, optimizer.param_groups)


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


@pytest.mark.parametrize(
    ("layer", "shape", "most"),
    [(nn.Linear(2, 1), (200_000, 2), 8_192), (nn.Conv2d(1, 1, 3), (2000, 1, 10, 10), 2_048)],
)
def test_of_many_samples_an_even_part_is_taken(layer, shape, most):
    torch.manual_seed(0)
    rows = input_rows(layer, torch.randn(shape), with_bias=True)
    assert most / 2 < len(rows) <= 2 * most
    assert abs(float(rows[:, 0].square().mean()) - 1) < 0.1


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
    blocks = {assignment.block.name: assignment.block for assignment in engine.plan.assignments}
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


class Towers(nn.Module):
    """Two branches on raw data, and a layer behind both."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.cat([self.one(x[:, :3]).relu(), self.other(x[:, 3:] * 2.0)], 1)).square().mean()


@pytest.mark.parametrize(("evaluation", "hidden"), [("tape", {"out"}), ("loop", {"other", "out"})])
def test_which_inputs_change_with_what_is_trained(evaluation, hidden):
    network, x = Towers(), torch.randn(8, 5)
    optimizer = PolyStep(network.parameters(), seed=0)
    engine = Engine(network, optimizer, evaluation=evaluation, max_candidates=24, announce=None)
    engine.step(lambda: network(x))
    assert {name for name, known in optimizer.statistics.items() if known.hidden} == hidden


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
def test_layers_inside_of_vmap_and_jacobians_train(evaluation):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            slopes = torch.func.vmap(torch.func.jacrev(self.inner))(x)
            return (torch.func.vmap(self.inner)(x) + slopes[:, :, 0]).square().mean()

    torch.manual_seed(0)
    network, x = Net(), torch.randn(8, 3)
    before = network.inner.weight.detach().clone()
    engine = Engine(network, PolyStep(network.parameters(), seed=0), evaluation=evaluation, announce=None)
    first = engine.step(lambda: network(x))
    for _ in range(4):
        last = engine.step(lambda: network(x))
    assert not torch.equal(network.inner.weight, before)
    assert last < first
