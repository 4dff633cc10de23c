"""What a snapshot finds, puts back in place, leaves alone, and names because it cannot be put back."""

import array
import io
import itertools
import queue
import random
from collections import ChainMap, UserDict, UserList
from functools import partial
from types import MappingProxyType, SimpleNamespace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch import nn

from lightning_polystep.snapshot import Snapshot, arguments_of


class Counted(dict):
    """A dict that counts what is written through it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.writes = 0

    def __setitem__(self, key, value):
        self.writes += 1
        super().__setitem__(key, value)


TOTAL = 0
SEEN = []


def test_variables_that_code_closes_over_and_names_are_put_back():
    count, seen, box = 0, [], SimpleNamespace(n=0)

    def step(known=[]):  # noqa: B006 - a default that is changed is what this is about
        nonlocal count
        global TOTAL
        count, TOTAL = count + 1, TOTAL + 1
        for each in (seen, known, SEEN):
            each.append(1)
        box.n += 1

    snapshot = Snapshot(partial(step))
    step()
    snapshot.restore()
    assert (count, TOTAL, seen, SEEN, step.__defaults__, box.n) == (0, 0, [], [], ([],), 0)


def test_a_subclass_is_put_back_without_its_own_methods():
    box = Counted({"a": 1})
    module = nn.Identity()
    module.box = box
    snapshot = Snapshot(module)
    box["b"] = 2
    box["a"] = 3
    snapshot.restore()
    assert module.box is box
    assert (dict(box), box.writes) == ({"a": 1}, 0)


def test_parameters_are_put_back_where_asked_for_whatever_was_done_to_them():
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    weight, memory, elsewhere = module.weight.detach().clone(), module.weight.data_ptr(), other.weight.detach().clone()
    snapshot = Snapshot(module, parameters=True)
    module.weight.data.mul_(2)  # without a trace in the version
    snapshot.restore()
    assert torch.equal(module.weight, weight)
    module.weight.data = other.weight.data  # shares the memory of another one
    snapshot.restore()
    assert torch.equal(module.weight, weight)
    assert module.weight.data_ptr() == memory
    assert torch.equal(other.weight, elsewhere)


def test_what_an_optimizer_has_moved_is_kept():
    module = nn.Linear(2, 2)
    snapshot = Snapshot(module, parameters=True)
    bias = module.bias.detach().clone()
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.bias.fill_(3.0)
    snapshot.accept([module.weight])
    snapshot.restore()
    assert bool((module.weight == 3).all())
    assert torch.equal(module.bias, bias)
    assert torch.equal(snapshot.value(module.weight), module.weight)


def test_a_large_batch_is_put_back():
    batch = {"x": torch.zeros(17 * 2**18)}
    step = partial(lambda batch: batch["x"].add_(1), batch)
    snapshot = Snapshot(step, whole=arguments_of(step))
    step()
    snapshot.restore()
    assert not batch["x"].any()


def test_memory_that_can_only_be_read_is_not_written(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.0, np.nan], dtype=np.float32))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    module = nn.Identity()
    module.array = array
    module.tensor = torch.from_dlpack(np.lib.stride_tricks.as_strided(np.array([1.0, np.nan]), writeable=True))
    version = module.tensor._version
    Snapshot(module).restore()
    assert module.tensor._version == version, "what has not changed is not written"


def test_what_cannot_be_put_back_is_named():
    module = nn.Identity()
    module.stream, module.file = itertools.count(), io.StringIO()
    module.box = SimpleNamespace(secure=random.SystemRandom())
    module.table = np.zeros(2**22)
    module.names = ["x"] * 100_001
    assert Snapshot(module).unknown == {
        "stream": "an iterator",
        "file": "a file",
        "box.secure": "a source of random numbers without a state",
        "table": "an array of 32 MiB",
        "names": "a list of 100,001 items",
    }


def test_objects_of_libraries_are_left_alone_but_for_those_of_the_network():
    class Recorder:
        def __init__(self):
            self.records = []

    module, recorder, loader = nn.Linear(2, 2), Recorder(), torch.utils.data.DataLoader([1])
    module.register_forward_hook(lambda *_: recorder.records.append(1))
    module.loader = loader
    snapshot = Snapshot(module)
    module(torch.ones(1, 2))
    loader.note = "kept"
    snapshot.restore()
    assert recorder.records == []
    assert loader.note == "kept"


def test_modules_that_torch_does_not_find_are_put_back():
    module, hidden = nn.Identity(), nn.BatchNorm1d(2)
    module.others = (hidden,)
    snapshot = Snapshot(module)
    hidden(torch.randn(4, 2))
    snapshot.restore()
    assert int(hidden.num_batches_tracked) == 0
    assert hidden.running_mean.tolist() == [0.0, 0.0]


class Optimising:
    """A small optimizer with its schedule, such as a step may hold for something of its own."""

    def __init__(self):
        self.weight = nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.Adam([self.weight], lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)

    def step(self):
        self.weight.grad = torch.ones(2)
        self.optimizer.step()
        self.schedule.step()

    def state(self):
        moments = self.optimizer.state_dict()["state"]
        return self.optimizer.param_groups[0]["lr"], moments[0]["step"].item() if moments else 0


def counting():
    counting.calls += 1


HOLDERS = {
    "UserDict": (lambda: UserDict(n=0), lambda box: box.update(n=box["n"] + 1), lambda box: box["n"]),
    "UserList": (UserList, lambda box: box.append(1), len),
    "ChainMap": (lambda: ChainMap({"n": 0}), lambda box: box.update(n=box["n"] + 1), lambda box: box["n"]),
    "a read-only view": (
        lambda: MappingProxyType({"x": [1]}),
        lambda box: box["x"].append(2),
        lambda box: len(box["x"]),
    ),
    "Queue": (queue.Queue, lambda box: box.put(1), lambda box: box.qsize()),
    "array": (lambda: array.array("i", [1]), lambda box: box.extend([2]), lambda box: box.tolist()),
    "WeakKeyDictionary": (WeakKeyDictionary, lambda box: box.update({nn.Identity: 1}), len),
    "SobolEngine": (lambda: torch.quasirandom.SobolEngine(1), lambda box: box.draw(), lambda box: box.num_generated),
    "an optimizer of its own": (Optimising, Optimising.step, Optimising.state),
    "a function that counts": (lambda: counting, lambda box: box(), lambda box: box.calls),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_else_of_python_and_torch_holds_state_is_put_back(name):
    make, change, read = HOLDERS[name]
    counting.calls = 0
    module = nn.Identity()
    module.box = make()
    before, snapshot = read(module.box), Snapshot(module)
    change(module.box)
    assert read(module.box) != before
    snapshot.restore()
    assert read(module.box) == before
    change(module.box)
    assert read(module.box) != before, "and it still works"


HISTORY = []


class Counter:
    made = 0


def helper():
    HISTORY.append(1)


class CallsOthers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def training_step(self, x):
        helper()
        return self.loss(self.inner(x))

    def loss(self, x):
        Counter.made += 1
        return x.sum()


class Inner(nn.Module):
    def forward(self, x):
        HISTORY.append(2)
        return x


def test_what_the_functions_and_methods_that_a_step_calls_write_is_put_back():
    HISTORY.clear()
    module = CallsOthers()
    snapshot = Snapshot(module, partial(module.training_step, torch.ones(1)))
    module.training_step(torch.ones(1))
    made = Counter.made
    assert len(HISTORY) == 2
    snapshot.restore()
    assert HISTORY == []
    assert Counter.made == made - 1


def test_whether_a_parameter_is_frozen_is_put_back():
    module = nn.Linear(2, 2)
    snapshot = Snapshot(module, parameters=True)
    module.requires_grad_(False)
    snapshot.restore()
    assert module.weight.requires_grad


def test_what_cannot_be_put_back_tells_where_it_stands():
    module = nn.Identity()
    module.count, module.items = itertools.count(), iter([1, 2])
    module.own, module.seeds = (n for n in range(3)), np.random.SeedSequence(0)
    snapshot = Snapshot(module)
    before = snapshot.positions()
    assert before == snapshot.positions()
    next(module.own), module.seeds.spawn(1), next(module.count), next(module.items)
    assert set(before) == {"count", "items", "own", "seeds"}
    assert all(before[name] != now for name, now in snapshot.positions().items())
