"""Scoring from the tape: tiers agree with networks built by hand, Python runs once a step, and doubts are told."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.taped import Recording, TapeTier, offer_tape
from lightning_polystep.scoring.tier import NotOfferedError
from tests.helpers.parity import CASES, INCREMENTAL, LOOP, OUTCOME, prepare, reference_losses
from tests.helpers.tapes import blocks_of, record, trial

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tier_agrees_with_networks_built_by_hand(case):
    prepared = prepare(case)
    assert set(prepared.proposals) == set(case.tiers)
    for name, proposal in prepared.proposals.items():
        expected = reference_losses(prepared, proposal)
        assert expected.std() > 1e-6, f"{name}: candidates that all cost the same test nothing"
        tiers = [LoopTier()]
        taped = prepared.tape_tier(name)
        # Which samples an expert gets is read by Python: the plan finds out that these numbers matter.
        tiers += [taped] if case.tiers[name] != LOOP and not taped.doubt() else []
        tiers += [prepared.stack_tier(name)] if case.tiers[name] in {OUTCOME, INCREMENTAL} else []
        for tier in tiers:
            with prepared.probe.isolated():
                losses = tier.score(proposal, prepared.probe, 0, proposal.candidates)
            assert losses.dtype == torch.float64
            torch.testing.assert_close(
                losses, expected, **TOLERANCE, msg=lambda m, n=name, t=tier: f"{n}, {t.name}: {m}"
            )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_chunk_size_does_not_matter(size):
    prepared = prepare(CASES[0])
    proposal, tier = prepared.proposals["0"], prepared.tape_tier("0")
    starts = range(0, proposal.candidates, size)
    parts = [tier.score(proposal, prepared.probe, s, min(s + size, proposal.candidates)) for s in starts]
    torch.testing.assert_close(torch.cat(parts), reference_losses(prepared, proposal), **TOLERANCE)


# What a user's step leaves behind is what one run of it leaves.


class Box:
    def __init__(self):
        self.trace, self.calls, self.seen = torch.zeros(4), 0, []


class Lived(nn.Module):
    """A step with every kind of side effect, once the plan is there."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("counted", torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.box, self.generator = Box(), torch.Generator().manual_seed(3)
        self.numbers = iter(range(10**9))
        self.target = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        x.sub_(0.1)
        hidden = torch.tanh(self.first(x)) * (1 + 0.1 * torch.randn(4, generator=self.generator))
        self.box.trace = 0.5 * self.box.trace + hidden.mean(0)
        self.box.calls += 1
        self.box.seen.append(hidden.mean())
        self.counted += 1
        self.frozen.mul_(0.9)
        next(self.numbers)
        for kept, own in zip(self.target.parameters(), self.first.parameters(), strict=True):
            kept.data = 0.9 * kept.data + 0.1 * own.data
        return self.second(hidden + self.target(x))


def lived_after(steps, evaluation):
    """Return what steps have left, those of the plan aside: its trials run the user's code."""
    torch.manual_seed(0)
    module = Lived()
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(steps + 1)]
    if evaluation is None:
        run = lambda x, y: F.cross_entropy(module(x), y)  # noqa: E731
        step = torch.no_grad()(run)
    else:
        engine = Engine(module, PolyStep(module.parameters(), seed=0, lr=0.0, rank=2), evaluation="tape", announce=None)
        step = lambda x, y: engine.step(lambda: F.cross_entropy(module(x), y))  # noqa: E731
    step(*(t.clone() for t in batches[0]))
    if evaluation is not None:
        assert {a.tier.name for a in engine.plan.assignments} == {"tape"}
    module.box, module.numbers, module.generator = Box(), iter(range(10**9)), torch.Generator().manual_seed(3)
    module.counted.zero_()
    with torch.no_grad():
        module.frozen.fill_(1.0)
        for parameter in module.target.parameters():
            parameter.fill_(0.5)
    for batch in batches[1:]:
        step(*batch)
    return module, batches


@pytest.mark.filterwarnings("ignore:Each run of the training step that scores a candidate moves on")  # in the plan
def test_once_planned_python_runs_once_a_step_whatever_it_changes():
    (plain, batches), (trained, also) = lived_after(3, None), lived_after(3, "tape")
    assert trained.box.calls == plain.box.calls == 3
    assert next(trained.numbers) == 3
    assert trained.counted == 3
    for mine, theirs in zip(also, batches, strict=True):
        assert torch.equal(mine[0], theirs[0]), "a batch that the step changes is changed once"
    torch.testing.assert_close(trained.frozen, torch.full((4,), 0.9**3))
    assert torch.equal(trained.generator.get_state(), plain.generator.get_state())
    assert len(trained.box.seen) == 3
    for mine, theirs in zip(trained.target.parameters(), plain.target.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_hooks_and_lists_see_one_run_a_step():
    network, seen = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), []
    network[1].register_forward_hook(lambda module, args, output: seen.append(output))
    engine = Engine(network, PolyStep(network.parameters(), seed=0, rank=2), evaluation="tape", announce=None)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    engine.step(lambda: F.cross_entropy(network(x), y))
    seen.clear()
    for _ in range(4):
        engine.step(lambda: F.cross_entropy(network(x), y))
    assert len(seen) == 4


# Numbers that leave the tape.


def tiers(module, step, **options):
    engine = Engine(module, PolyStep(module.parameters(), seed=0, rank=2, lr=0.0), announce=None, **options)
    engine.step(step)
    return {a.block.name: (a.tier.name, a.reason) for a in engine.plan.assignments}


LEAVES = {
    "item": lambda h: h / (1 + h.max().item()),
    "float": lambda h: h * float(h.mean()),
    "numpy": lambda h: torch.from_numpy(np.tanh(3 * h.numpy())),
    "array": lambda h: torch.tensor(np.asarray(h) ** 2),
    "list": lambda h: torch.tensor([[2 * number for number in row] for row in h.tolist()]),
    "a branch": lambda h: h if h.mean() > 0.02 else -h,
    "a shape": lambda h: h[:, : 2 + int(h.sum() > 0)].sum(1, keepdim=True) + h,
}


@pytest.mark.parametrize("way", LEAVES)
def test_numbers_that_come_back_from_python_send_a_block_to_the_loop_with_the_place(way):
    torch.manual_seed(3)
    first, second, x, y = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(8, 4), torch.randint(3, (8,))
    module = nn.ModuleList([first, second])
    found = tiers(module, lambda: F.cross_entropy(second(LEAVES[way](torch.tanh(first(x)))), y))
    assert found["0"][0] == "loop"
    assert "test_taped.py:" in found["0"][1] or "not depend on it" in found["0"][1]
    assert found["1"][0] == "tape", "what lies behind is on the tape"


def test_numbers_that_are_only_logged_keep_a_block_on_the_tape():
    first, second, x, y = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(8, 4), torch.randint(3, (8,))
    logged = []

    def step():
        scores = second(torch.tanh(first(x)))
        loss = F.cross_entropy(scores, y)
        logged.extend([loss.item(), float((scores.argmax(1) == y).float().mean()), scores.numpy().mean()])
        return loss

    found = tiers(nn.ModuleList([first, second]), step)
    assert {tier for tier, _ in found.values()} == {"tape"}


def test_code_that_fills_memory_beside_torch_is_refused_with_the_reason():
    first, second, x, y = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(8, 4), torch.randint(3, (8,))

    def step():
        hidden, out = first(x), torch.empty(8, 5)
        np.copyto(out.numpy(), np.tanh(hidden.numpy()))
        return F.cross_entropy(second(out), y)

    found = tiers(nn.ModuleList([first, second]), step)
    assert found["0"][0] == "loop"
    assert "code that the tape does not see has written" in found["0"][1]


def test_a_loss_that_torch_did_not_compute_is_refused():
    network, x = nn.Linear(4, 1), torch.randn(8, 4)
    found = tiers(network, lambda: torch.tensor(network(x).square().mean().item()))
    assert {tier for tier, _ in found.values()} == {"loop"}


# Structures that change.


def test_steps_that_take_turns_have_programs_of_their_own():
    """Two experts of the same shape, of which a step uses one: the tapes look alike."""
    torch.manual_seed(0)
    experts, x, y = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]).double(), torch.randn(8, 4).double(), None
    y = torch.randint(3, (8,))
    recording, blocks = Recording(), blocks_of(experts)
    for turn in (0, 1, 0):
        with torch.no_grad(), recording.recording():
            loss = F.cross_entropy(experts[turn](x), y)
        recording.ends_in(loss)
        for number, block in enumerate(blocks):
            if number != turn:
                with pytest.raises(NotOfferedError, match="does not depend on it"):
                    offer_tape(recording, block)
                continue
            _, probe, _ = record(experts, lambda turn=turn: F.cross_entropy(experts[turn](x), y))
            with probe.isolated():
                expected = LoopTier().score(trial(block), probe, 0, 4)
            torch.testing.assert_close(TapeTier(block, recording).score(trial(block), probe, 0, 4), expected)


def test_numbers_in_the_code_that_change_from_step_to_step_are_followed():
    torch.manual_seed(0)
    network, x, recording = nn.Linear(4, 3).double(), torch.randn(8, 4).double(), Recording()
    (block,) = blocks_of(network)
    for scale in (1.0, 0.5, 3.0):
        step = lambda scale=scale: (network(x) * scale).tanh().square().mean()  # noqa: E731
        _, probe, _ = record(network, step)
        with torch.no_grad(), recording.recording():
            loss = step()
        recording.ends_in(loss)
        with probe.isolated():
            expected = LoopTier().score(trial(block), probe, 0, 4)
        torch.testing.assert_close(TapeTier(block, recording).score(trial(block), probe, 0, 4), expected)


class Alternating(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.calls = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), 0

    def forward(self, x):
        self.calls += 1
        return self.layers[0](x) if self.calls % 2 else self.layers[0](x) + self.layers[1](x)


def test_batches_of_other_sizes_are_taped_too():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    engine = Engine(network, PolyStep(network.parameters(), seed=0, rank=2), evaluation="tape", announce=None)
    for samples in (16, 7, 16, 1):
        x, y = torch.randn(samples, 4), torch.randint(3, (samples,))
        engine.step(lambda x=x, y=y: F.cross_entropy(network(x), y))
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {"tape"}


def test_parameters_of_shared_modules_stay_in_their_places():
    first, norm, last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
    last.weight = first.weight
    module, x, y = nn.ModuleList([first, norm, last, first]), torch.randn(8, 4), torch.randint(4, (8,))
    before = dict(module.named_parameters(remove_duplicate=False))
    engine = Engine(module, PolyStep(module.parameters(), seed=0), evaluation="tape", announce=None)
    engine.step(lambda: F.cross_entropy(last(norm(first(torch.relu(first(x))))), y))
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())


def test_the_tape_is_forgotten_with_the_step():
    network, x = nn.Linear(4, 3), torch.randn(8, 4)
    engine = Engine(network, PolyStep(network.parameters(), seed=0), announce=None)
    engine.step(lambda: network(x).square().mean())
    with pytest.raises(RuntimeError, match="No step has been recorded"):
        engine.plan.assignments[0].tier.work()


def test_a_tape_trains():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(128, 4)
    y = (x @ torch.randn(4, 3)).argmax(1)
    engine = Engine(network, PolyStep(network.parameters(), seed=0, rank=4), evaluation="tape", announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(network(x), y))) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_tape_that_still_lives_when_python_ends_is_no_error():
    """Modules of Python are taken apart then, and what they held is None."""
    script = """
import builtins, gc, torch
from lightning_polystep.scoring import taped
recording = taped.Recording()
with recording.recording():
    torch.ones(2).sum()
builtins.kept, taped.gc = recording, None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr
