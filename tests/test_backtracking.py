"""The loss decides how far a step goes whose costs are estimates."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.tape import NotOnTapeError, Rerun
from tests.helpers.estimated import Convolutional

X, Y = torch.rand(64, 3, 9, 9, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 10


def run(steps=6, lr=0.1, sign=1.0, **options):
    torch.manual_seed(0)
    net = Convolutional()
    optimizer = PolyStep(net.parameters(), lr=lr, seed=0, **options)
    engine = Engine(net, optimizer, announce=None)
    shares = []
    for _ in range(steps):
        before = engine.step(lambda: sign * F.cross_entropy(net(X), Y))
        with torch.no_grad():
            after = sign * F.cross_entropy(net(X), Y)
        shares.append((optimizer.binding.report.get("step_share"), float(before), float(after)))
    return net, engine, shares


def bits(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_a_step_that_is_too_long_is_shortened():
    _, _, shares = run(lr=3.0)
    assert any(share < 1 for share, _, _ in shares)
    for share, before, after in shares:
        assert after <= before * 1.1 + 1e-4 or share == 1 / 16
    _, _, whole = run(lr=3.0, backtracking=False)
    assert any(after > before for _, before, after in whole)
    assert {share for share, _, _ in whole} == {None}


def test_the_next_step_begins_with_twice_the_share():
    _, engine, shares = run(lr=3.0, steps=8)
    tried = [share for share, _, _ in shares]
    assert all(after <= min(1.0, 2 * before) for before, after in zip([1.0, *tried], tried, strict=False))
    assert float(engine.optimizer.learned["backtracking"]["share"]) == tried[-1]


def test_steps_that_are_short_enough_are_made_to_the_bit():
    with_, engine, shares = run(lr=0.02)
    assert all(share == 1 for share, _, _ in shares)
    assert torch.equal(bits(with_), bits(run(lr=0.02, backtracking=False)[0]))
    assert "halved while they raise the loss" in str(engine.plan)


def test_after_many_whole_steps_few_are_tried():
    _, engine, shares = run(lr=0.002, steps=24)
    tried = [step for step, (share, _, _) in enumerate(shares) if share is not None]
    assert tried == [*range(16), 16, 20]
    assert float(engine.optimizer.learned["backtracking"]["whole moves in a row"]) == 18


def test_whoever_climbs_may_not_fall():
    _, _, shares = run(lr=3.0, maximize=True, sign=-1.0)
    for share, before, after in shares:
        assert after >= before - 0.1 * abs(before) - 1e-4 or share == 1 / 16


def test_groups_that_climb_beside_others_that_descend_are_not_decided():
    net = Convolutional()
    groups = [{"params": list(net.head.parameters()), "maximize": True}]
    groups.append({"params": [*net.first.parameters(), *net.second.parameters()]})
    optimizer = PolyStep(groups, seed=0)
    engine = Engine(net, optimizer, announce=None)
    engine.step(lambda: F.cross_entropy(net(X), Y))
    assert "some groups climb" in str(engine.plan)
    assert "step_share" not in optimizer.binding.report


def test_what_was_scored_by_forward_passes_is_decided_already():
    _, engine, shares = run(lr=3.0, response_grid=0)
    assert {share for share, _, _ in shares} == {None}
    assert "halved" not in str(engine.plan)


def test_a_step_of_several_micro_batches_is_made_whole():
    torch.manual_seed(0)
    net = Convolutional()
    optimizer = PolyStep(net.parameters(), lr=3.0, seed=0)
    engine = Engine(net, optimizer, announce=None)
    for _ in range(2):
        optimizer.zero_grad()
        for half in (slice(32), slice(32, 64)):
            with engine.observing(lambda half=half: F.cross_entropy(net(X[half]), Y[half])):
                loss = F.cross_entropy(net(X[half]), Y[half])
            engine.probe(lambda half=half: F.cross_entropy(net(X[half]), Y[half]), loss, weight=0.5)
        optimizer.step()
    assert "step_share" not in optimizer.binding.report


def test_a_resumed_run_goes_on_with_the_share():
    torch.manual_seed(0)
    straight, stopped = Convolutional(), Convolutional()
    stopped.load_state_dict(straight.state_dict())

    def engine_of(net):
        return Engine(net, PolyStep(net.parameters(), lr=3.0, seed=0), announce=None)

    def steps(net, engine, count):
        for _ in range(count):
            engine.step(lambda: F.cross_entropy(net(X), Y))

    first, half = engine_of(straight), engine_of(stopped)
    steps(straight, first, 5)
    steps(stopped, half, 3)
    resumed = copy.deepcopy(stopped)
    rest = engine_of(resumed)
    rest.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    steps(resumed, rest, 2)
    assert torch.equal(bits(straight), bits(resumed))


def test_a_step_that_cannot_be_run_again_says_so_once(monkeypatch):
    def refuse(*_):
        raise NotOnTapeError("it has drawn lots")

    monkeypatch.setattr(Rerun, "of", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, _, shares = run(steps=3)
    said = [str(each.message) for each in caught if "not decided by the loss" in str(each.message)]
    assert len(said) == 1
    assert "it has drawn lots" in said[0]
    assert "backtracking=False" in said[0]
    assert {share for share, _, _ in shares} == {None}


def test_the_norm_of_a_step_is_that_of_what_was_made():
    torch.manual_seed(0)
    net = Convolutional()
    optimizer = PolyStep(net.parameters(), lr=3.0, seed=0, momentum=0.0)
    engine = Engine(net, optimizer, announce=None)
    for _ in range(4):
        before = bits(net).clone()
        engine.step(lambda: F.cross_entropy(net(X), Y))
        made = float((bits(net) - before).double().norm())
        assert float(optimizer.binding.report["step_norm"]) == pytest.approx(made, rel=1e-3)
