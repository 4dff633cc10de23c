"""What a step takes is told once, after the first steps, and changes nothing."""

import torch
from torch import nn

from lightning_polystep import Engine, PolyStep, PolyStepStrategy
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
    pace = Pace(clock)
    told = []
    for seconds in (100.0, 50.0, 0.02, 0.02, 0.02, 9.0):
        told.append(pace.at_start_of_step(10))
        clock.seconds["observe"] += seconds / 4
        clock.seconds["score"] += 3 * seconds / 4
    assert told == [""] * 5 + ["20 ms per step (75 % of it for 10 candidates), 20 s for 1,000 steps"]
    pace.tell(None, quiet=True)
    assert [pace.at_start_of_step(10) for _ in range(6)][-1].startswith("0 ms per step")
