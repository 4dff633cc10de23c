"""Networks as users write them, each with one thing that a tape has to get right."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

CASES: dict[str, Callable[[], "Step"]] = {}
# What no tape can carry, each with a part of the reason.
REFUSED: dict[str, str] = {}


class Step(nn.Module):
    """Layers and parameters by name, and what a step does with them."""

    def __init__(self, run: Callable[["Step"], Tensor], **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, nn.Parameter(member) if isinstance(member, Tensor) else member)
        self.run = run
        self.double()

    def forward(self) -> Tensor:
        return self.run(self)


def case(build):
    CASES[build.__name__] = build
    return build


def refused(reason):
    def register(build):
        REFUSED[build.__name__] = reason
        return case(build)

    return register


def spike(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def classes(count: int = 6, of: int = 3) -> Tensor:
    return torch.randint(of, (count,))


@case
def rows_of_a_weight_that_is_flattened():
    x, y = random(6, 5), classes()
    return Step(
        lambda s: F.cross_entropy(torch.tanh(x @ s.heads.view(6, 5).t()) @ s.out, y),
        heads=random(3, 2, 5),
        out=random(6, 3),
    )


@case
def padding_that_moves_features():
    x, y = random(6, 5), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(F.pad(torch.tanh(s.hidden(x)), (1, -1))), y),
        hidden=nn.Linear(5, 6),
        out=nn.Linear(6, 3),
    )


@case
def padding_that_moves_channels():
    x, y = random(6, 5, 7), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(F.pad(torch.tanh(s.conv(x)), (0, 0, 1, -1)).flatten(1)), y),
        conv=nn.Conv1d(5, 4, 3),
        out=nn.Linear(20, 3),
    )


@case
def relu_in_place_on_what_a_product_returned():
    x, y = random(6, 2, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.second(torch.tanh(s.first(x))).relu_().sum(1)), y),
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 5, bias=False),
        out=nn.Linear(5, 3),
    )


@case
def gru():
    x, y = random(6, 3, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.gru(torch.tanh(s.inp(x)))[0][:, -1]), y),
        inp=nn.Linear(4, 4),
        gru=nn.GRU(4, 5, batch_first=True),
        out=nn.Linear(5, 3),
    )


@case
def lstm_in_both_directions():
    x, y = random(6, 2, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.lstm(torch.tanh(s.inp(x)))[0][:, -1]), y),
        inp=nn.Linear(4, 4),
        lstm=nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        out=nn.Linear(6, 3),
    )


@case
def lstm_cell():
    x, y = random(6, 4), classes()

    def run(s):
        h = c = x.new_zeros(6, 5)
        for t in range(3):
            h, c = s.cell(x * t, (h, c))
        return F.cross_entropy(s.out(h), y)

    return Step(run, cell=nn.LSTMCell(4, 5), out=nn.Linear(5, 3))


@case
def bits_read_as_whole_numbers():
    x, y = random(6, 4), classes()
    return Step(
        # The first bits of a fraction: rounding decides on the last.
        lambda s: F.cross_entropy(s.out((torch.tanh(s.hidden(x)).view(torch.int64) >> 50).remainder(7).double()), y),
        hidden=nn.Linear(4, 4),
        out=nn.Linear(4, 3),
    )


@case
def transposed_convolution():
    x, y = random(6, 2, 5, 5), classes()
    return Step(
        lambda s: F.cross_entropy(s.up(torch.tanh(s.conv(x))).mean((2, 3)), y),
        conv=nn.Conv2d(2, 3, 3),
        up=nn.ConvTranspose2d(3, 3, 2),
    )


@case
def depthwise_convolution():
    x, y = random(6, 4, 5, 5), classes()
    return Step(
        lambda s: F.cross_entropy(s.point(torch.relu(s.depth(x))).mean((2, 3)), y),
        depth=nn.Conv2d(4, 4, 3, groups=4),
        point=nn.Conv2d(4, 3, 1),
    )


@case
def grouped_convolution():
    x, y = random(6, 4, 5, 5), classes()
    return Step(
        lambda s: F.cross_entropy(s.point(torch.relu(s.grouped(s.first(x)))).mean((2, 3)), y),
        first=nn.Conv2d(4, 4, 1),
        grouped=nn.Conv2d(4, 4, 3, groups=2),
        point=nn.Conv2d(4, 3, 1),
    )


def _normalised(norm: nn.Module, conv: bool = False) -> Step:
    x, y = (random(6, 4, 5, 5) if conv else random(6, 4)), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(torch.relu(s.norm(s.first(x))).reshape(6, 4, -1).mean(2)), y),
        first=nn.Conv2d(4, 4, 2) if conv else nn.Linear(4, 4),
        norm=norm,
        out=nn.Linear(4, 3),
    )


@case
def batch_norm_with_its_own_statistics():
    return _normalised(nn.BatchNorm1d(4))


@case
def batch_norm_with_running_statistics():
    return _normalised(nn.BatchNorm1d(4).eval())


@case
def running_statistics_read_behind_the_batch_that_made_them():
    x, y = random(6, 4), classes()

    def run(s):
        s.norm.train()
        first = s.norm(s.first(x))
        s.norm.eval()
        return F.cross_entropy(s.out(first + s.norm(s.first(x + 1))), y)

    return Step(run, first=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), out=nn.Linear(4, 3))


@case
def layer_norm():
    return _normalised(nn.LayerNorm(4))


@case
def group_norm():
    return _normalised(nn.GroupNorm(2, 4), conv=True)


@case
def instance_norm():
    return _normalised(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), conv=True)


@case
def attention():
    x, y = random(6, 3, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.attend(x, x, x)[0].mean(1)), y),
        attend=nn.MultiheadAttention(4, 2, batch_first=True),
        out=nn.Linear(4, 3),
    )


@case
def transformer_layer():
    x, y = random(6, 3, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.layer(x).mean(1)), y),
        layer=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        out=nn.Linear(4, 3),
    )


@case
def membranes_counters_and_records_written_in_place():
    x, y = random(6, 4), classes()

    def run(s):
        count, record, membrane = x.new_zeros(6, 5), x.new_zeros(4, 6, 5), x.new_zeros(6, 5)
        for t in range(4):
            membrane = membrane * 0.9 + s.first(x) * (t + 1) * 0.3
            fired = spike(membrane - 0.5)
            membrane[fired > 0] = 0
            count += fired
            record[t] = fired
        out = s.out(record)
        last = out[0].clone()
        last *= torch.sigmoid(s.gain)
        last.clamp_(-1, 1)
        return F.cross_entropy(out.sum(0) + s.counted(count) + last, y)

    return Step(run, first=nn.Linear(4, 5), out=nn.Linear(5, 3), counted=nn.Linear(5, 3), gain=torch.tensor(0.3))


@case
def views_of_views_written():
    x, y = random(6, 4), classes()

    def run(s):
        h = s.first(x)
        view = h.view(6, 2, 3)
        view[:, 0].mul_(2)
        h[:, 1:3].add_(view[:, 1, :2])
        left, right = h.chunk(2, 1)
        left.tanh_()
        right += left
        h.t()[0] = 0
        torch.diagonal(h).fill_(0.5)
        return F.cross_entropy(s.out(view.flatten(1)), y)

    return Step(run, first=nn.Linear(4, 6), out=nn.Linear(6, 3))


@case
def a_comparison_written_into_numbers():
    x, y = random(6, 4), classes()
    return Step(lambda s: F.cross_entropy(s.out(s.first(x).gt_(0.1)), y), first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def results_written_into_given_tensors():
    x, y = random(6, 4), classes()

    def run(s):
        h, means = s.first(x), torch.empty(6, dtype=torch.float64)
        torch.mean(h, 1, out=means)
        total = torch.empty_like(h)
        torch.add(h, means[:, None], out=total)
        return F.cross_entropy(s.out(total), y)

    return Step(run, first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def lists_of_tensors_written_at_once():
    x, y = random(6, 4), classes()

    def run(s):
        both = [s.first(x), s.first(2 * x)]
        torch._foreach_mul_(both, 2.0)
        bent = torch._foreach_tanh(both)
        return F.cross_entropy(s.out(bent[0] + bent[1] + both[0]), y)

    return Step(run, first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def a_tensor_that_changes_its_shape_in_place():
    x, y = random(6, 4), classes()

    def run(s):
        h = s.first(x)
        h.unsqueeze_(1)
        h.mul_(2)
        return F.cross_entropy(s.out(h.squeeze_(1)), y)

    return Step(run, first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def embedding():
    tokens, y = torch.randint(7, (6, 3)), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(s.table(tokens).mean(1)), y), table=nn.Embedding(7, 4), out=nn.Linear(4, 3)
    )


@case
def embedding_tied_to_the_readout():
    tokens, y = torch.randint(7, (6, 3)), classes(of=7)
    return Step(
        lambda s: F.cross_entropy(torch.tanh(s.mix(s.table(tokens).mean(1))) @ s.table.weight.t(), y),
        table=nn.Embedding(7, 4),
        mix=nn.Linear(4, 4),
    )


@case
def penalty_on_the_weights():
    x, y = random(6, 4), classes()

    def run(s):
        penalty = 0.1 * s.first.weight.square().sum() + 0.2 * s.out.weight.abs().amax(1).mean()
        return F.cross_entropy(s.out(torch.relu(s.first(x))), y) + penalty

    return Step(run, first=nn.Linear(4, 5), out=nn.Linear(5, 3))


def _mlp() -> Step:
    x, y = random(6, 4), classes()
    return Step(lambda s: F.cross_entropy(s.out(torch.relu(s.first(x))), y), first=nn.Linear(4, 5), out=nn.Linear(5, 3))


@case
def pruned_weights():
    step = _mlp()
    prune.random_unstructured(step.first, "weight", 0.4)
    prune.l1_unstructured(step.out, "weight", 0.3)
    return step


@case
def weight_and_spectral_norm():
    step = _mlp()
    parametrizations.weight_norm(step.first)
    parametrizations.spectral_norm(step.out)
    return step


@case
def orthogonal_weights():
    step = _mlp()
    parametrizations.orthogonal(step.first)
    return step


@case
def an_empty_tensor_that_grows():
    x, y = random(6, 4), classes()

    def run(s):
        record = torch.tensor([], dtype=torch.float64)
        for t in range(3):
            record = torch.cat([record, s.first(x * t)[None]])
        return F.cross_entropy(s.out(record.tanh().sum(0)), y)

    return Step(run, first=nn.Linear(4, 5), out=nn.Linear(5, 3))


@case
def contrastive_loss():
    x = random(6, 4)

    def run(s):
        one, other = F.normalize(s.one(x), dim=1), F.normalize(s.other(x), dim=1)
        return F.cross_entropy(one @ other.t() * 3, torch.arange(6))

    return Step(run, one=nn.Linear(4, 5), other=nn.Linear(4, 5))


@case
def segmentation_with_ignored_places_and_class_weights():
    x, y = random(6, 2, 5, 5), torch.randint(3, (6, 5, 5))
    y[0, 0, 0] = -100
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return Step(
        lambda s: F.cross_entropy(s.point(s.conv(x).relu_()), y, weight=weight),
        conv=nn.Conv2d(2, 4, 3, padding=1),
        point=nn.Conv2d(4, 3, 1),
    )


@case
def learned_leaks_and_thresholds():
    x, y = random(6, 4), classes()

    def run(s):
        membrane = second = total = 0
        for _ in range(4):
            membrane = torch.sigmoid(s.leak) * membrane + s.first(x)
            fired = spike(membrane - s.threshold)
            membrane = membrane - fired * s.threshold
            second = s.share * second + s.out(fired)
            total = total + second
        return F.cross_entropy(total, y)

    return Step(
        run,
        first=nn.Linear(4, 5),
        out=nn.Linear(5, 3),
        leak=torch.randn(5),
        threshold=torch.full((5,), 0.4),
        share=torch.tensor(0.8),
    )


@case
def time_folded_into_the_batch_where_all_sizes_are_equal():
    x, y = random(4, 4, 3, 4, 4), classes(4)

    def run(s):
        h = s.conv(x.flatten(0, 1)).view(4, 4, 4, 4, 4)
        membrane, fired = 0, []
        for t in range(4):
            membrane = 0.7 * membrane + h[t]
            fired.append(spike(membrane - 0.2))
            membrane = membrane * (1 - fired[-1])
        pooled = F.max_pool2d(s.norm(torch.stack(fired).flatten(0, 1)), 2).view(4, 4, -1)
        return F.cross_entropy(s.out(pooled).mean(0), y)

    return Step(run, conv=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4), out=nn.Linear(16, 3))


@case
def attention_scores_between_places_of_one_axis():
    x, y = random(4, 4, 4), classes(4, 4)

    def run(s):
        key = s.first(x)
        return F.cross_entropy((key @ s.second(x).transpose(1, 2)).softmax(-1).matmul(key).sum(1), y)

    return Step(run, first=nn.Linear(4, 4), second=nn.Linear(4, 4))


@case
def experts_chosen_by_index():
    x, y = random(6, 4), classes()

    def run(s):
        chosen = s.experts[s.router(x).argmax(1)]
        return F.cross_entropy(torch.einsum("nd,nde->ne", torch.relu(s.first(x)), chosen), y)

    return Step(run, first=nn.Linear(4, 5), router=nn.Linear(4, 2), experts=random(2, 5, 3))


@case
def columns_written_one_after_the_other():
    x = random(6, 4)

    def run(s):
        state = x.clone()
        for place in range(4):
            state[:, place] = torch.tanh(s.first(state))[:, place]
        return F.mse_loss(s.out(state), x.new_zeros(6, 3))

    return Step(run, first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def data_assigned_to_a_tensor():
    x, y = random(6, 4), classes()

    def run(s):
        weight = s.first.weight.detach().clone()
        weight.data = weight.data * 0.5
        return F.cross_entropy(s.out(F.linear(x, weight)), y)

    return Step(run, first=nn.Linear(4, 4, bias=False), out=nn.Linear(4, 3))


@case
def a_weight_that_meets_its_transpose():
    x, y = random(6, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(torch.tanh(x @ (s.square + s.square.t()))), y),
        square=random(4, 4),
        out=nn.Linear(4, 3),
    )


@case
def reductions_of_many_kinds():
    x = random(6, 4)

    def run(s):
        h = s.first(x)
        each = h.logsumexp(1) + h.std(1) + h.norm(dim=1) + h.prod(1) + h.median(1).values + h.cumsum(1)[:, 2]
        each = each + h.sort(1, descending=True)[0][:, 1] + h.topk(2, 1)[0].sum(1) + h.amax(1) - h.min(1)[0]
        overall = h.var(unbiased=False) + torch.linalg.vector_norm(h) + h.max() + h.mean(0).abs().sum()
        return each.mean() + overall + s.out(x).flip(0).roll(1, 1).amin()

    return Step(run, first=nn.Linear(4, 4), out=nn.Linear(4, 3))


@case
def a_mask_of_minus_infinity():
    x, y = random(6, 4), classes()
    mask = torch.zeros(6, 5, dtype=torch.float64).masked_fill_(torch.rand(6, 5) < 0.3, -torch.inf)
    return Step(
        lambda s: F.cross_entropy(s.out((s.first(x) + mask).softmax(1)), y), first=nn.Linear(4, 5), out=nn.Linear(5, 3)
    )


@case
def a_view_from_before_the_step():
    x, y = random(6, 4), classes()
    step = Step(
        lambda s: F.cross_entropy(s.out(F.linear(x, s.first.weight) + F.linear(x, s.alias[0].view(5, 4))), y),
        first=nn.Linear(4, 5, bias=False),
        out=nn.Linear(5, 3),
    )
    step.alias = [step.first.weight.detach().view(-1)]
    return step


@refused("draws at random what depends on it")
def spikes_drawn_at_random():
    x, y = random(6, 4), classes()
    return Step(
        lambda s: F.cross_entropy(s.out(torch.bernoulli(torch.sigmoid(s.first(x)))), y),
        first=nn.Linear(4, 5),
        out=nn.Linear(5, 3),
    )


@refused("how many values aten.index.Tensor returns depends on it")
def shapes_that_depend_on_data():
    x, y = random(6, 4), classes()

    def run(s):
        h = s.first(x)
        return F.cross_entropy(s.out(h), y) + h[h > 0].sum()

    return Step(run, first=nn.Linear(4, 5), out=nn.Linear(5, 3))


@refused("share a part of their memory")
def a_part_of_a_weight_cut_out_before_the_step():
    x, y = random(6, 4), classes()
    step = Step(
        lambda s: F.cross_entropy(s.out(F.linear(x, s.first.weight) + F.linear(x, s.part[0])), y),
        first=nn.Linear(4, 5, bias=False),
        out=nn.Linear(5, 3),
    )
    step.part = [step.first.weight.detach()[1:2]]
    return step
