"""Buffers that shards write differently: which they are, on every process the same ones."""

import torch
from torch import nn

from lightning_polystep.agreement import Agreement
from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import Processes
from lightning_polystep.shared_buffers import SharedBuffers


class Other(Processes):
    """Two processes that divide a batch, of which the other has written the third buffer."""

    def __init__(self):
        super().__init__(Layout(data=Axis(0, 2)))

    def sum(self, parts, dtype=torch.float64):
        choices = parts["choices"].clone()
        choices[1, 2] = 1
        return {"choices": choices}


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("d", "c", "b", "a"):
            self.register_buffer(name, torch.zeros(2))


def written_during_the_pass(processes):
    """Return a module, one buffer of which is written, and what is known of its buffers."""
    module = Kept()
    buffers = SharedBuffers(module, Agreement(processes, lambda: 0, 1))
    buffers.watch()
    module.c += 1
    buffers.take()
    return module, buffers


def test_all_take_what_any_has_written():
    module, buffers = written_during_the_pass(Other())
    assert buffers.tensors() == [], "nothing was agreed on"
    buffers.agree()
    assert [id(each) for each in buffers.tensors()] == [id(module.b), id(module.c)]


def test_what_was_written_before_the_pass_does_not_count():
    module = Kept()
    buffers = SharedBuffers(module, Agreement(Other(), lambda: 0, 1))
    module.c += 1
    buffers.watch()
    buffers.take()
    buffers.agree()
    assert [id(each) for each in buffers.tensors()] == [id(module.b)]


def test_a_buffer_that_is_gone_is_not_shared():
    module = Kept()
    buffers = SharedBuffers(module, Agreement(Other(), lambda: 0, 1))
    buffers.agree()
    del module.b
    assert buffers.tensors() == []


def test_who_has_the_whole_batch_shares_nothing():
    _, buffers = written_during_the_pass(Processes())
    buffers.agree()
    assert buffers.tensors() == []
