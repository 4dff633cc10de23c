"""What a snapshot finds, puts back in place, leaves alone, and names because it cannot be put back."""

import argparse
import array
import ctypes
import hashlib
import io
import itertools
import os
import queue
import random
import sqlite3
import sys
import threading
from collections import ChainMap, UserDict, UserList
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType, ModuleType, SimpleNamespace
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from sklearn.preprocessing import StandardScaler
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


def test_what_cannot_be_put_back_is_named(tmp_path):
    module = nn.Identity()
    module.stream = itertools.count()
    module.box = SimpleNamespace(secure=random.SystemRandom())
    module.table = np.zeros(2**22)
    module.names = ["x"] * 100_001
    with (tmp_path / "log").open("w") as module.file:
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


def inference_tensor():
    with torch.inference_mode():
        return torch.zeros(2)


def add_in_inference_mode(tensor):
    with torch.inference_mode():
        tensor += 1


class Counting:
    """An object of the user's own, which may be a key."""

    n = 0


class Remembered:
    """An attribute that is kept elsewhere, by object."""

    def __init__(self):
        self.numbers = WeakKeyDictionary()

    def __get__(self, owner, kind=None):
        return self if owner is None else self.numbers.get(owner, 0)

    def __set__(self, owner, number):
        self.numbers[owner] = number


class HasRemembered:
    n = Remembered()


def add_one(box):
    box.n += 1


VARIABLE = ContextVar("variable", default=0)

HOLDERS = {
    "a sequence of seeds": (
        lambda: np.random.SeedSequence(0),
        lambda box: box.spawn(1),
        lambda box: box.n_children_spawned,
    ),
    "spawned generators": (
        lambda: np.random.default_rng(0),
        lambda box: box.spawn(1),
        lambda box: box.bit_generator.seed_seq.n_children_spawned,
    ),
    "text in memory": (io.StringIO, lambda box: box.write("a\n"), lambda box: (box.getvalue(), box.tell())),
    "bytes in memory": (io.BytesIO, lambda box: box.write(b"a"), lambda box: (box.getvalue(), box.tell())),
    "numbers of a thread": (
        threading.local,
        lambda box: box.__setattr__("n", len(vars(box))),
        lambda box: len(vars(box)),
    ),
    "a semaphore": (lambda: threading.Semaphore(9), lambda box: box.acquire(), lambda box: box._value),
    "options": (lambda: argparse.Namespace(n=0), add_one, lambda box: box.n),
    "a distribution": (
        lambda: torch.distributions.Normal(torch.zeros(2), torch.ones(2)),
        lambda box: box.loc.add_(1),
        lambda box: box.loc.tolist(),
    ),
    "an estimator of a library": (
        lambda: StandardScaler().fit([[1.0]]),
        lambda box: box.partial_fit([[2.0]]),
        lambda box: (box.n_samples_seen_, box.mean_.tolist()),
    ),
    "a mock": (mock.Mock, lambda box: box.play(1), lambda box: box.play.call_count),
    "a number of C": (lambda: ctypes.c_int(0), lambda box: setattr(box, "value", box.value + 1), lambda box: box.value),
    "numbers of C": (ctypes.c_int * 2, lambda box: box.__setitem__(0, box[0] + 1), list),
    "a tensor of inference mode": (inference_tensor, add_in_inference_mode, lambda box: box.tolist()),
    "a key of a dict": (lambda: {Counting(): 1}, lambda box: add_one(next(iter(box))), lambda box: next(iter(box)).n),
    "a descriptor": (HasRemembered, add_one, lambda box: box.n),
    "a context variable": (
        lambda: VARIABLE,
        lambda box: box.set(box.get() + 1),
        lambda box: box.get(),
    ),
    "a metric that no module holds": (
        lambda: [torchmetrics.MeanMetric()],
        lambda box: box[0].update(1.0),
        lambda box: float(box[0].weight),
    ),
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
    before, snapshot = read(module.box), Snapshot(module, skip=(torchmetrics.Metric,))
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
    module.own, module.seeds = (n for n in range(3)), hashlib.sha256()
    module.rows, module.round = sqlite3.connect(":memory:"), itertools.cycle([1, 2, 3])
    module.rows.execute("create table t(a)")
    snapshot = Snapshot(module)
    before = snapshot.positions()
    assert before == snapshot.positions()
    next(module.own), module.seeds.update(b"x"), next(module.count), next(module.items), next(module.round)
    module.rows.execute("insert into t values(1)")
    assert set(before) == {"count", "items", "own", "seeds", "rows", "round"}
    assert all(before[name] != now for name, now in snapshot.positions().items())
    assert snapshot.what_is("seeds") == "an object of HASH"
    assert snapshot.what_is("own") == "an iterator"


HELPERS = ModuleType("helpers")
exec("N = 0\nSEEN = []\ndef tick():\n    global N\n    N += 1\n    SEEN.append(N)\n", vars(HELPERS))
sys.modules.setdefault("helpers_of_a_user", HELPERS)


def step_with_helpers():
    from helpers_of_a_user import SEEN  # noqa: PLC0415 - as users do

    HELPERS.N += 1
    HELPERS.tick()
    SEEN.append(0)
    os.environ["STEPS_OF_A_TEST"] = os.environ.get("STEPS_OF_A_TEST", "") + "x"


def test_what_a_step_writes_into_modules_of_the_users_own_and_the_environment_is_put_back(monkeypatch):
    monkeypatch.delenv("STEPS_OF_A_TEST", raising=False)
    snapshot = Snapshot(nn.Identity(), step_with_helpers)
    step_with_helpers()
    assert (HELPERS.N, len(HELPERS.SEEN), os.environ["STEPS_OF_A_TEST"]) == (2, 2, "x")
    snapshot.restore()
    assert (HELPERS.N, HELPERS.SEEN, "STEPS_OF_A_TEST" in os.environ) == (0, [], False)


class Notes(pl.Callback):
    def __init__(self):
        self.n = 0


class WritesTrainer(pl.LightningModule):
    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = True
        self.trainer.mine = 1
        for callback in self.trainer.callbacks:
            if isinstance(callback, Notes):
                callback.n += 1


def test_what_a_step_writes_at_the_trainer_and_its_callbacks_is_put_back():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[Notes()], max_epochs=1)
    module = WritesTrainer()
    module.trainer = trainer
    snapshot = Snapshot(module, partial(module.training_step, torch.ones(1), 0))
    trainer.other = trainer.limit_val_batches = 5  # nobody names these
    module.training_step(torch.ones(1), 0)
    snapshot.restore()
    assert not trainer.should_stop
    assert not hasattr(trainer, "mine")
    assert trainer.other == 5
    assert next(each for each in trainer.callbacks if isinstance(each, Notes)).n == 0


def test_compiled_code_that_a_library_keeps_is_not_taken_away():
    numba = pytest.importorskip("numba")
    module = nn.Identity()
    module.total = numba.njit(lambda x: x.sum())
    snapshot = Snapshot(module)
    module.total(np.ones(2))
    snapshot.restore()
    assert len(module.total.signatures) == 1


def test_an_object_that_cannot_be_looked_into_is_no_error():
    class Shy:
        def __getattribute__(self, name):
            raise AttributeError(name)

    module = nn.Identity()
    module.shy, module.n = Shy(), [0]
    snapshot = Snapshot(module)
    module.n.append(1)
    snapshot.restore()
    assert module.n == [0]
    assert snapshot.unknown == {"shy": "an object that raises an error when it is looked into"}
    assert snapshot.positions() == {"shy": None}
