"""Only pairs of a candidate and a sample that change go on, and equal ones as one."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import Recorder, compile_program
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.pairs import pairs_of
from lightning_polystep.tape.program import Stage


def frame_of(values):
    """Return the frame of candidates of a unit whose spikes are given, (K, N), and what is read of them."""
    first, second, x, y = nn.Linear(4, 2), nn.Linear(2, 3), torch.randn(5, 4), torch.randint(3, (5,))
    nn.init.constant_(first.bias, -10.0)
    with torch.no_grad(), Recorder() as recorder:
        spikes = (first(x) > 0).float()
        loss = F.cross_entropy(second(spikes), y)
    tape = recorder.tape
    program = compile_program(tape, {tape.leaves[id(first.weight)]: 0}, tape.find(loss))
    count, index = len(values), tape.find(spikes)
    units = Frame(tape, program, Stage.UNIT, torch.arange(count), torch.zeros(count, dtype=torch.long))
    units.values[index] = values[:, :, None]
    return pairs_of(units, program.exits[1]), program


def test_pairs_that_do_what_they_did_are_left_out():
    values = torch.zeros(3, 5)
    values[0, 1] = values[2, 4] = 1
    pairs, _ = frame_of(values)
    assert sorted(zip(pairs.candidates.tolist(), pairs.samples.tolist(), strict=True)) == [(0, 1), (2, 4)]


def test_candidates_that_do_the_same_go_on_as_one():
    values = torch.zeros(4, 5)
    values[0, 1] = values[1, 1] = values[3, 1] = 1
    pairs, _ = frame_of(values)
    assert pairs.count == 1
    assert pairs.by_candidate(torch.tensor([[2.0]])).flatten().tolist() == [2.0, 2.0, 0.0, 2.0]


def test_where_nothing_changes_one_pair_goes_on_and_adds_nothing():
    pairs, _ = frame_of(torch.zeros(3, 5))
    assert pairs.count == 1
    assert pairs.by_candidate(torch.zeros(1, 1)).tolist() == [[0.0]] * 3


def test_what_is_infinite_hides_no_change():
    values = torch.zeros(2, 5)
    values[0, 0] = torch.inf
    values[1, 0] = -torch.inf
    values[1, 3] = torch.nan
    pairs, _ = frame_of(values)
    assert sorted(zip(pairs.candidates.tolist(), pairs.samples.tolist(), strict=True)) == [(0, 0), (1, 0), (1, 3)]
