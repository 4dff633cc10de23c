"""A step that gives another loss when it runs again is named where the loop has to run it."""

import functools
import itertools
import os
import warnings

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep


@functools.lru_cache
def asked():
    return 0


def helper():
    """State in compiled code, which nobody sees."""
    asked()
    return asked.cache_info().hits


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 2), kind
        self.stream, self.calls = itertools.count(1), 0

    def forward(self, x):
        self.calls += 1
        number = {
            "an iterator": lambda: next(self.stream),
            "a cache's counter": helper,
            "the system": lambda: int.from_bytes(os.urandom(2), "little"),
            "an attribute": lambda: self.calls,
        }[self.kind]()
        loss = self.layer(x).square().mean() * (1 + 0.1 * number)
        return torch.tensor(float(loss))  # leaves torch, so that the loop has to score it


@pytest.mark.parametrize("kind", ["an iterator", "a cache's counter", "the system"])
def test_what_is_not_put_back_is_noticed_when_the_plan_is_made(kind):
    net, x = Net(kind), torch.randn(6, 3)
    engine = Engine(net, PolyStep(net.parameters(), rank=1, seed=0), announce=None)
    with pytest.warns(UserWarning, match="another loss when it runs again") as caught:
        engine.step(lambda: net(x))
    assert len(caught) == 1
    assert "stream (an iterator)" in str(caught[0].message), "all that might be the cause is named"
    assert "another loss" in " ".join(str(engine.plan).split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(lambda: net(x))
    assert net.calls == 2


def test_what_is_put_back_is_not():
    net, x = Net("an attribute"), torch.randn(6, 3)
    engine = Engine(net, PolyStep(net.parameters(), rank=1, seed=0), announce=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(lambda: net(x))
    assert engine.plan.unrepeatable == ""


def test_what_moves_on_without_a_trace_in_the_loss_is_named_on_the_tape_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.stream, self.still = nn.Linear(3, 2), itertools.count(1), itertools.count(1)

        def forward(self, x):
            return self.layer(x).square().mean() + 0 * next(self.stream)

    net, x = Net(), torch.randn(6, 3)
    engine = Engine(net, PolyStep(net.parameters(), rank=1, seed=0), announce=None)
    with pytest.warns(UserWarning, match=r"moves on what PolyStep cannot put back: .*stream \(an iterator\)\. "):
        engine.step(lambda: net(x))
    assert "moves on" in " ".join(str(engine.plan).split())


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
def test_a_step_that_writes_files_is_named_on_every_way_to_score(tmp_path, evaluation):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            with (tmp_path / "log").open("a") as file:
                file.write("a line\n")
            return self.layer(x).square().mean()

    net, x = Net(), torch.randn(6, 3)
    engine = Engine(net, PolyStep(net.parameters(), rank=1, seed=0), evaluation=evaluation, announce=None)
    with pytest.warns(UserWarning, match=r"cannot put back: the file .*log.* \(written\)\. .*on_train_batch_end"):
        engine.step(lambda: net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(lambda: net(x))
