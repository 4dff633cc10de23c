"""What a snapshot finds, puts back in place, leaves alone, and names because it cannot be put back."""

import io
import itertools
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
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
