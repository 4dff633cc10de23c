"""Operations that are replayed with given values of all units at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.answers import Answers
from lightning_polystep.tape import Dense, last_products
from lightning_polystep.tape.fuse import cpu
from tests.helpers.tapes import blocks_of, interpreted, record


class Spiking(nn.Module):
    """Two layers of neurons, a readout, and a penalty on the spikes of the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        total, penalty, membranes = 0.0, 0.0, [0.0, 0.0]
        for _ in range(3):
            membranes[0] = 0.9 * membranes[0] + self.first(x)
            spikes = (membranes[0] > 0.2).to(x)
            membranes[1] = 0.9 * membranes[1] + self.second(spikes)
            total, penalty = total + self.head((membranes[1] > 0.1).to(x)), penalty + 0.1 * spikes.sum(1)
        return total, penalty


def recorded():
    torch.manual_seed(0)
    net, x, y = Spiking().double(), torch.randn(7, 6).double(), torch.arange(7) % 3

    def step():
        scores, penalty = net(x)
        return F.cross_entropy(scores, y) + penalty.mean()

    recording, _, _ = record(net, step)
    return net, x, recording


def test_scores_are_what_the_last_products_make_and_penalties_are_none():
    _net, _, recording = recorded()
    tape = recording.taken()
    made = last_products(tape, recording.loss)
    assert [tuple(tape.values[index].tensor.shape) for index in made] == [(7, 3)] * 3


def test_a_run_from_the_middle_is_the_forward_pass_for_each_instance():
    net, x, recording = recorded()
    tape = recording.taken()
    block = next(each for each in blocks_of(net) if each.name == "first")
    entries, _ = recording.entries(block)
    scores = last_products(tape, recording.loss)
    products = [entry.made for entry in entries.products]
    shifts = torch.randn(4, 7, 5).double()
    dense = Dense.of(tape, entries.behind, products, scores)
    runs = dense.run(tape, {made: tape.values[made].tensor + shifts for made in products})

    def expected(shift):
        membranes, found = [0.0, 0.0], []
        for _ in range(3):
            membranes[0] = 0.9 * membranes[0] + net.first(x) + shift
            membranes[1] = 0.9 * membranes[1] + net.second((membranes[0] > 0.2).to(x))
            found.append(net.head((membranes[1] > 0.1).to(x)))
        return found

    for instance, shift in enumerate(shifts):
        with torch.no_grad():
            reference = expected(shift)
        for made, own in zip(scores, reference, strict=True):
            torch.testing.assert_close(runs[made][instance], own)
    assert not torch.equal(runs[scores[0]][0], runs[scores[0]][1])


def test_only_what_leads_to_the_wanted_values_runs():
    net, _, recording = recorded()
    tape = recording.taken()
    block = next(each for each in blocks_of(net) if each.name == "first")
    entries, _ = recording.entries(block)
    first, *others = last_products(tape, recording.loss)
    products = [entry.made for entry in entries.products]
    one, every = (Dense.of(tape, entries.behind, products, wanted) for wanted in ([first], [first, *others]))
    assert 0 < len(one.steps) < len(every.steps) < len(entries.behind.steps)


def local_of(recording, net, name="first"):
    block = next(each for each in blocks_of(net) if each.name == name)
    entries, _ = recording.entries(block)
    made = [entry.made for entry in entries.products]
    return Answers.of(recording.taken(), entries).local, made


def test_loops_give_what_the_operations_give(monkeypatch):
    monkeypatch.setattr(cpu, "compiled", interpreted)
    net, _, recording = recorded()
    tape = recording.taken()
    dense, made = local_of(recording, net)
    assert dense.loops
    assert len(dense.fused) < len(dense.steps)
    given = {index: torch.stack([tape.values[index].tensor + each for each in (0.3, 0.0, -0.4)]) for index in made}
    plain, fused = dense.run(tape, given), dense.run(tape, given, runs=10**9)
    assert plain.keys() == fused.keys()
    assert all(torch.equal(fused[index], each) for index, each in plain.items())
    assert any(len(each.unique()) > 1 for each in plain.values())


def test_loops_wait_until_they_pay(monkeypatch):
    net, _, recording = recorded()
    dense, made = local_of(recording, net)
    tape, sources = recording.taken(), []
    monkeypatch.setattr(cpu, "compiled", lambda source: sources.append(source) or interpreted(source))
    given = {index: tape.values[index].tensor[None] for index in made}
    needed = dense.loops.compiling / (len(dense.steps) * 4e-5)
    dense.run(tape, given, runs=int(needed) - 1)
    assert not sources
    dense.run(tape, given, runs=int(needed) + 1)
    assert sources


def test_a_loop_that_differs_is_told_and_given_up(monkeypatch):
    monkeypatch.setattr(cpu, "compiled", lambda source: interpreted(source.replace("0.2", "0.9")))
    net, _, recording = recorded()
    dense, made = local_of(recording, net)
    tape = recording.taken()
    given = {index: tape.values[index].tensor[None] for index in made}
    with pytest.warns(UserWarning, match="compiled loops differ"):
        found = dense.run(tape, given, runs=10**9)
    plain = dense.run(tape, given)
    assert not dense.loops
    assert all(torch.equal(found[index], each) for index, each in plain.items())
