"""A program runs level by level, and lets go of what is read no more."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape.program import Stage
from lightning_polystep.tape.schedule import schedule
from tests.helpers.tapes import blocks_of, record


def scripts():
    torch.manual_seed(0)
    layers, x, y = (
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)),
        torch.randn(6, 4),
        torch.randint(3, (6,)),
    )

    def step():
        total, h = 0, x
        for _ in range(3):
            h = torch.tanh(layers[0](x)) * 0.5 + 0.1 * h.mean(1, keepdim=True)
            total = total + layers[2](torch.relu(layers[1](h)))
        return F.cross_entropy(total, y)

    recording, _, _ = record(layers, step)
    tape = recording.taken()
    return [(tape, recording.script(block).program) for block in blocks_of(layers)]


def test_stages_and_levels_come_in_their_order():
    for tape, program in scripts():
        for fuse in (False, True):
            order = [
                (0, 0)
                if s.stage == Stage.UNIT
                else (1, s.level)
                if s.stage == Stage.SAMPLE or s.sums_samples
                else (2, 0)
                for s in schedule(tape, program, fuse=fuse)
            ]
            assert order == sorted(order)


def test_every_step_runs_once():
    for tape, program in scripts():
        for fuse in (False, True):
            steps = [s for each in schedule(tape, program, fuse=fuse) for s in getattr(each.work, "steps", [each.work])]
            assert sorted(s.number for s in steps) == sorted(s.number for s in program.steps)


def test_nothing_is_let_go_of_before_it_is_read():
    for tape, program in scripts():
        for fuse in (False, True):
            gone = set()
            for segment in schedule(tape, program, fuse=fuse):
                assert gone.isdisjoint(segment.reads(tape, program))
                gone |= set(segment.releases)
            assert program.loss not in gone
