"""A probe sees what the commit pass saw, on the same noise, and the module never notices."""

import logging
import math
from queue import SimpleQueue

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_polystep.blocks import find_blocks
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.probe import Probe, as_scalar
from lightning_polystep.sites import observing


class Step(nn.Module):
    """A step that draws noise, keeps a metric and appends to a list."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)
        self.mean, self.history = MeanMetric(), []

    def forward(self, inputs):
        loss = self.dropout(self.layer(inputs)).square().mean()
        self.mean(loss)
        self.history.append(loss)
        return loss


@pytest.fixture
def inputs():
    return torch.randn(8, 3)


@pytest.fixture
def step():
    return Step()


def probe_of(step, inputs, **options):
    return Probe(step, lambda: step(inputs), (5, 0, 0), **options)


def test_repeats_the_commit_pass(step, inputs):
    with noise_frame(5, 0, 0):
        committed = step(inputs)
    probe = probe_of(step, inputs)
    with probe.isolated():
        losses = [probe.loss() for _ in range(3)]
    assert all(torch.equal(loss, committed.double().detach()) for loss in losses)
    assert losses[0].dtype == torch.float64
    assert not losses[0].requires_grad
    probe.noise_key = (5, 1, 0)
    with probe.isolated():
        assert probe.loss() != losses[0]


@pytest.mark.parametrize("live", [False, True])
def test_leaves_no_trace(step, inputs, live):
    step(inputs)
    history, recorded = list(step.history), float(step.mean.compute())
    count, state = step.mean._update_count, torch.get_rng_state()
    probe = probe_of(step, inputs, live_metrics=live)
    with probe.isolated():
        probe.loss()
        assert step.history == history, "undone after each evaluation, not only at the end"
        probe.loss()
    assert step.history == history
    assert (float(step.mean.compute()), step.mean._update_count) == (recorded, count)
    assert torch.equal(torch.get_rng_state(), state)
    assert "update" in vars(step.mean), "torchmetrics' own wrapper is back"
    step(inputs)
    assert step.mean._update_count == count + 1


def test_undoes_a_step_that_fails_half_way(step, inputs):
    def fail():
        step(inputs)
        raise ArithmeticError

    probe = Probe(step, fail, (5, 0, 0))
    with pytest.raises(ArithmeticError), probe.isolated():
        probe.loss()
    assert step.history == []
    assert torch.is_grad_enabled()


def test_nothing_is_recorded_of_a_probe(step, inputs):
    blocks = find_blocks(step, PolyStep(step.parameters()).param_groups)
    probe = probe_of(step, inputs)
    with observing(step, blocks) as seen, probe.isolated():
        probe.loss()
    assert seen.calls == {}
    assert seen.take_moments() == {}


def test_autograd_is_off_inside_and_as_before_outside(step, inputs):
    seen = SimpleQueue()  # which probes do not put back, unlike a list
    probe = Probe(step, lambda: (seen.put(torch.is_grad_enabled()), step(inputs))[1], (5, 0, 0))
    with probe.isolated():
        probe.loss()
    assert seen.qsize() == 1
    assert seen.get() is False
    assert torch.is_grad_enabled()
    assert step.layer.weight.grad is None


def test_metrics_are_live_only_where_asked(step, inputs):
    values = SimpleQueue()
    probe = Probe(step, lambda: (values.put(float(step.mean(1.0))), step(inputs))[1], (5, 0, 0))
    for live in (False, True):
        probe.live_metrics = live
        with probe.isolated():
            probe.loss()
    muted, live = values.get(), values.get()
    assert math.isnan(muted)
    assert live == 1.0


def test_further_silences_hold_while_probing(step, inputs):
    logger = logging.getLogger("tests.probe")
    open_now = []

    class Quiet:
        def __enter__(self):
            open_now.append(logger)

        def __exit__(self, *_):
            open_now.pop()

    probe = Probe(step, lambda: (_check(open_now), step(inputs))[1], (5, 0, 0), mute=Quiet)
    with probe.isolated():
        probe.loss()
    assert open_now == []


def _check(open_now):
    assert open_now


def test_belongs_inside_isolation(step, inputs):
    probe = probe_of(step, inputs)
    with pytest.raises(RuntimeError, match=r"belongs inside Probe.isolated\(\)"):
        probe.loss()
    with probe.isolated():
        probe.loss()
    with pytest.raises(RuntimeError, match=r"belongs inside Probe.isolated\(\)"):
        probe.loss()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_is_a_scalar(shape):
    assert as_scalar(torch.full(shape, 2.0)).shape == ()


@pytest.mark.parametrize("shape", [(2,), (0,), (3, 1)])
def test_several_numbers_are_no_loss(shape):
    with pytest.raises(ValueError, match=r"loss of shape \(.*return a scalar, for example its mean"):
        as_scalar(torch.zeros(shape))
