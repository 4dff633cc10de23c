"""Adapters are found by the classes of a module tree, and wrap passes in order."""

import collections
from contextlib import contextmanager

import torch
from torch import nn

from lightning_polystep.interop.adapters import Adapter, Adapters, adapters_for, comes_from, modules_of


class Noisy(Adapter):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def start(self):
        self.log.append(f"{self.name} starts")

    def rewind(self):
        self.log.append(f"{self.name} rewinds")

    @contextmanager
    def _noted(self, what):
        self.log.append(f"{self.name} {what}")
        yield
        self.log.append(f"{self.name} done")

    def observing(self):
        return self._noted("observes")

    def probing(self):
        return self._noted("probes")

    def held(self):
        return {self.name: "why"}


def test_torch_modules_need_none():
    adapters = adapters_for(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))

    def evaluate():
        return torch.zeros(())

    assert adapters.parts == ()
    assert adapters.rewound(evaluate) is evaluate
    with adapters.observing(), adapters.probing():
        adapters.start()
        adapters.rewind()


def test_subclasses_count_as_the_library_of_their_base():
    class Mine(collections.OrderedDict):
        pass

    assert comes_from(Mine(), "collections")
    assert not comes_from(Mine(), "col")
    assert list(modules_of(nn.Sequential(nn.ReLU()), "torch")) == ["", "0"]


def test_all_parts_take_part_and_unwind_in_reverse():
    log = []
    adapters = Adapters([Noisy("a", log), Noisy("b", log)])
    adapters.start()
    for context in (adapters.observing, adapters.probing):
        with context():
            log.append("body")
    assert adapters.rewound(lambda: log.append("evaluates"))() is None
    assert log == [
        *("a starts", "b starts"),
        *("a observes", "b observes", "body", "b done", "a done"),
        *("a probes", "b probes", "body", "b done", "a done"),
        *("a rewinds", "b rewinds", "evaluates"),
    ]
    assert adapters.held() == {"a": "why", "b": "why"}
