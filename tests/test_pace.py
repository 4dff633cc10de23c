"""What a step takes is told once, after the first steps, and changes nothing."""

import threading

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep, PolyStepStrategy, pace
from lightning_polystep.clock import VerbClock
from lightning_polystep.engine import print_plan
from lightning_polystep.pace import Pace
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, loader, trainer


def trained(announce, capsys):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(8, 4)
    engine = Engine(net, PolyStep(net.parameters(), lr=0.1, rank=2, seed=0), announce=announce)
    for _ in range(8):
        engine.step(lambda: net(x).square().mean())
    return engine, capsys.readouterr().err, parameters_sha256(net)


def test_it_is_printed_once_and_becomes_part_of_the_plan(capsys):
    engine, printed, loud = trained(print_plan, capsys)
    assert printed.count("per step (") == 1
    assert engine.plan.pace in printed
    assert engine.plan.pace in " ".join(str(engine.plan).split())
    _, printed, silent = trained(None, capsys)
    assert "PolyStep:" not in printed
    assert loud == silent


def test_an_epoch_is_told_where_its_batches_are_known(tmp_path, capsys):
    module = Boring()
    trainer(tmp_path, strategy=PolyStepStrategy()).fit(module, loader(12))
    assert "for an epoch of 12 batches" in " ".join(capsys.readouterr().err.split())


def test_the_first_steps_do_not_count_and_a_new_plan_is_measured_anew():
    clock = VerbClock()
    told, measured = [], Pace(clock)
    for seconds in (100.0, 50.0, 0.02, 0.02, 0.02, 9.0):
        told.append(measured.at_start_of_step(10))
        clock.seconds["observe"] += seconds / 4
        clock.seconds["score"] += 3 * seconds / 4
    assert told == [""] * 5 + ["20 ms per step (75 % of it for 10 candidates), 20 s for 1,000 steps"]
    measured.tell(None)
    assert [measured.at_start_of_step(10) for _ in range(6)][-1].startswith("0 ms per step")


class AtOnce:
    """A timer that has run out as soon as it starts, or one that never does."""

    made = 0

    def __init__(self, patient):
        self.patient = patient

    def __call__(self, _seconds, tell):
        self.made += 1
        self.start = (lambda: None) if self.patient else tell
        return self

    def cancel(self):
        self.start = None


@pytest.mark.parametrize("patient", [False, True])
def test_a_slow_phase_says_once_what_it_does_and_a_fast_one_nothing(capsys, monkeypatch, patient):
    timer = AtOnce(patient)
    monkeypatch.setattr(threading, "Timer", timer)
    _, printed, loud = trained(print_plan, capsys)
    sentences = [
        "PolyStep: making the plan: recording the step, and timing the ways to score 1 blocks, once",
        "PolyStep: scoring 8 candidates of a step; the first one also compiles what the plan has chosen",
    ]
    assert [printed.splitlines().count(sentence) for sentence in sentences] == ([0, 0] if patient else [1, 1])
    assert timer.made == (7 if patient else 2)  # the plan, and the first six steps or until it was told
    _, printed, silent = trained(None, capsys)
    assert "PolyStep:" not in printed
    assert loud == silent


def test_a_phase_that_ends_early_stays_silent_and_leaves_no_thread(capsys):
    before = threading.active_count()
    measured = Pace(VerbClock())
    with pytest.raises(ZeroDivisionError), measured.planning(3):
        raise ZeroDivisionError
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(pace.PATIENCE)
    assert threading.active_count() == before
    assert capsys.readouterr().err == ""
