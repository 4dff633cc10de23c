"""What all metrics promise: sums over batches and processes, any dtype, and NaN for nothing."""

import math
import pickle

import pytest
import torch
from torch import nn

from lightning_polystep.metrics import (
    AttentionCoverage,
    ClipFraction,
    CodeUtilisation,
    DeadExperts,
    DeadNeuronFraction,
    ExpertLoad,
    FlipRate,
    LevelOccupancy,
    RouterMargin,
    SaturatedNeuronFraction,
    SpikeRate,
    SynapticOperations,
    TieRate,
)
from lightning_polystep.metrics.counting import count_indices, normalised_entropy

LAYER = nn.Linear(5, 3)


def spikes(samples):
    return ((torch.rand(4, samples, 5) < 0.3).float(),)


# How to make each metric, and what a batch of so many samples looks like to it.
METRICS = {
    "SpikeRate": (SpikeRate, spikes),
    "DeadNeuronFraction": (lambda: DeadNeuronFraction(5), spikes),
    "SaturatedNeuronFraction": (lambda: SaturatedNeuronFraction(5, 0.4), spikes),
    "SynapticOperations": (SynapticOperations, lambda n: (*spikes(n), LAYER, n)),
    "CodeUtilisation": (lambda: CodeUtilisation(range(-7, 8)), lambda n: (torch.randint(-7, 8, (n, 2)),)),
    "ClipFraction": (lambda: ClipFraction(-3, 3), lambda n: (torch.randn(n, 6), torch.tensor(0.3))),
    "FlipRate": (FlipRate, lambda n: (torch.randn(n, 4).sign(), torch.randn(n, 4).sign())),
    "LevelOccupancy": (lambda: LevelOccupancy([0.0, 0.5, 1.0]), lambda n: (torch.randint(0, 3, (n, 4)) / 2,)),
    "AttentionCoverage": (AttentionCoverage, lambda n: (torch.randint(-1, 6, (n, 2, 3)), 6)),
    "TieRate": (TieRate, lambda n: (torch.randint(0, 3, (n, 4)).float(),)),
    "ExpertLoad": (lambda: ExpertLoad(4), lambda n: (torch.randint(0, 4, (n,)),)),
    "DeadExperts": (lambda: DeadExperts(9), lambda n: (torch.randint(0, 9, (n,)),)),
    "RouterMargin": (RouterMargin, lambda n: (torch.randn(n, 4),)),
}


@pytest.fixture(params=METRICS)
def metric_and_batch(request):
    return METRICS[request.param]


def together(batches):
    """One batch out of several: tensors are joined along their samples, numbers of samples are added."""
    spiking = batches[0][0].ndim == 3 and batches[0][0].shape[0] == 4 and batches[0][0].shape[-1] == 5
    joined = []
    for parts in zip(*batches, strict=True):
        if isinstance(parts[0], torch.Tensor) and parts[0].ndim:
            joined.append(torch.cat(parts, dim=1 if spiking else 0))
        elif isinstance(parts[0], int) and len({*parts}) > 1:
            joined.append(sum(parts))
        else:
            joined.append(parts[0])
    return joined


def test_batches_of_unequal_size_equal_one(metric_and_batch):
    make, batch = metric_and_batch
    batches = [batch(samples) for samples in (1, 7, 3)]
    one, many = make(), make()
    one.update(*together(batches))
    for each in batches:
        many.update(*each)
    torch.testing.assert_close(many.compute(), one.compute(), rtol=1e-6, atol=0)


def test_processes_are_added(metric_and_batch):
    make, batch = metric_and_batch
    batches = [batch(samples) for samples in (2, 6)]
    whole, first, second = make(), make(), make()
    whole.update(*together(batches))
    first.update(*batches[0])
    second.update(*batches[1])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-6, atol=0)
    assert all(reduction is torch.sum or "sum" in reduction.__name__ for reduction in first._reductions.values())


def test_a_process_that_saw_nothing_adds_nothing(metric_and_batch):
    make, batch = metric_and_batch
    whole, idle, arguments = make(), make(), batch(5)
    whole.update(*arguments)
    expected = make()
    expected.update(*arguments)
    whole.merge_state(idle)
    torch.testing.assert_close(whole.compute(), expected.compute(), rtol=0, atol=0)


def test_forward_returns_the_value_of_the_batch_and_counts_it(metric_and_batch):
    make, batch = metric_and_batch
    metric, batches = make(), [batch(3), batch(4)]
    for each in batches:
        alone = make()
        alone.update(*each)
        torch.testing.assert_close(metric(*each), alone.compute(), rtol=0, atol=0)
    expected = make()
    expected.update(*together(batches))
    torch.testing.assert_close(metric.compute(), expected.compute(), rtol=1e-6, atol=0)


def test_nothing_gives_nan_without_a_warning(metric_and_batch):
    make, batch = metric_and_batch
    metric = make()
    metric.update(*batch(0))
    value = metric.compute()
    values = list(value.values()) if isinstance(value, dict) else [value]
    assert all(bool(each.isnan().all()) for each in values)


def test_reset_forgets(metric_and_batch):
    make, batch = metric_and_batch
    metric, arguments = make(), batch(4)
    metric.update(*batch(9))
    metric.reset()
    metric.update(*arguments)
    fresh = make()
    fresh.update(*arguments)
    torch.testing.assert_close(metric.compute(), fresh.compute(), rtol=0, atol=0)


def test_copies_and_checkpoints_keep_the_counts(metric_and_batch):
    make, batch = metric_and_batch
    metric = make()
    metric.update(*batch(4))
    torch.testing.assert_close(pickle.loads(pickle.dumps(metric)).compute(), metric.compute(), rtol=0, atol=0)
    metric.persistent(True)
    loaded = make()
    loaded.update(*batch(1))
    loaded.load_state_dict(metric.state_dict())
    torch.testing.assert_close(loaded.compute(), metric.compute(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floats_of_any_dtype_count_alike(metric_and_batch, dtype):
    make, batch = metric_and_batch
    arguments = [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in batch(6)]
    # What the narrow numbers stand for, in float32.
    wide = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    narrow, expected = make(), make()
    narrow.update(*arguments)
    expected.update(*wide)
    torch.testing.assert_close(narrow.compute(), expected.compute(), rtol=2e-2, atol=2e-2)


def test_a_half_precision_model_keeps_whole_numbers(metric_and_batch):
    make, batch = metric_and_batch
    holder = nn.Module()
    holder.metric = make()
    holder.half()
    for samples in (3, 5):
        holder.metric.update(*batch(samples))
    states = [getattr(holder.metric, name) for name in holder.metric._defaults]
    assert all(state.dtype in {torch.int64, torch.float32} for state in states)


@pytest.mark.gpu
def test_on_a_gpu(metric_and_batch):
    make, batch = metric_and_batch
    arguments = batch(6)
    here, there = make(), make().to("cuda")
    here.update(*arguments)
    there.update(*[a.cuda() if isinstance(a, torch.Tensor | nn.Module) else a for a in arguments])
    LAYER.cpu()
    for value, expected in zip(
        torch.utils._pytree.tree_leaves(there.compute()), torch.utils._pytree.tree_leaves(here.compute()), strict=True
    ):
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("counts", [[3, 0, 0], [2, 2, 2], [5, 1, 0, 2], [7]])
def test_entropy_equals_a_loop(counts):
    total, expected = sum(counts), 0.0
    for count in counts:
        if count:
            expected -= count / total * math.log(count / total)
    expected = expected / math.log(len(counts)) if len(counts) > 1 else 1.0
    assert float(normalised_entropy(torch.tensor(counts))) == pytest.approx(expected, abs=1e-6)


def test_entropy_of_one_place_is_no_negative_zero():
    assert math.copysign(1.0, float(normalised_entropy(torch.tensor([3, 0])))) == 1.0


def test_indices_are_checked():
    assert count_indices(torch.tensor([[0, 2], [2, 2]], dtype=torch.uint8), 3, "m", "indices").tolist() == [1, 0, 3]
    with pytest.raises(TypeError, match=r"^m: indices must be integers, got torch.float32[.]$"):
        count_indices(torch.ones(2), 3, "m", "indices")
    with pytest.raises(ValueError, match=r"^m: indices must be 0 to 2, got -1 to 3[.]$"):
        count_indices(torch.tensor([-1, 3]), 3, "m", "indices")
