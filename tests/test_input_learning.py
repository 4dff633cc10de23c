"""What shards show of a step's inputs is learnt as one process would that ran their micro-batches in turn."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from lightning_polystep import input_learning
from lightning_polystep.agreement import Agreement
from lightning_polystep.blocks import find_blocks
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import Processes
from lightning_polystep.sites import observing


class Shards(Processes):
    """One of several processes that divide the batch, each of them a thread of this one."""

    def __init__(self, index, meeting):
        super().__init__(Layout(data=Axis(index, meeting.barrier.parties)))
        self.meeting = meeting
        self.messages = 0

    def sum(self, parts, dtype=torch.float64):
        self.messages += 1
        self.meeting.said[self.layout.rank] = parts
        self.meeting.barrier.wait()
        total = {name: sum(said[name].to(dtype) for said in self.meeting.said.values()) for name in parts}
        self.meeting.barrier.wait()
        return total


class Meeting:
    """Where the threads meet."""

    def __init__(self, size):
        self.barrier = Barrier(size, timeout=60)
        self.said = {}


class Learner:
    """A linear layer, and what is learnt of its inputs."""

    def __init__(self, processes=None):
        self.module = nn.Linear(3, 2)
        self.optimizer = PolyStep(self.module.parameters(), seed=0)
        self.inputs = InputLearning(self.optimizer, Agreement(processes or Processes(), lambda: 0, 1))
        self.blocks = find_blocks(self.module, self.optimizer.param_groups)
        self.inputs.follow(self.blocks)
        self.name = self.blocks[0].name

    @property
    def known(self):
        return self.optimizer.statistics[self.name]

    def run(self, batch):
        with observing(self.module, self.blocks, self.inputs.measured(self.inputs.own_batch)) as seen, torch.no_grad():
            self.module(batch)
        return seen

    def learn(self, batch):
        self.inputs.take(self.run(batch))
        self.inputs.learn()
        self.optimizer.progress.micro_batch += 1

    def end_step(self):
        self.optimizer.progress.micro_batch = 0
        self.optimizer.progress.step += 1


def test_at_first_four_micro_batches_of_a_step_count_later_the_first_of_every_fifth():
    learner, counted = Learner(), []
    for _ in range(17):
        before = learner.known.batches if learner.name in learner.optimizer.statistics else 0
        for batch in torch.randn(6, 5, 3):
            learner.learn(batch)
        counted.append(learner.known.batches - before)
        learner.end_step()
    assert counted == [4, 4, 4, 4, 4, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]


def test_the_longer_a_basis_holds_the_less_often_it_is_checked():
    learner, measured = Learner(), []
    for step in range(130):
        batches = learner.known.batches if step else 0
        learner.learn(torch.eye(3))
        if step >= 20 and learner.known.batches > batches:
            measured.append(step)
        if step in {19, 100}:  # as a proposal does that takes a basis
            learner.known.basis_moment, learner.known.held = learner.known.moment, 0
        learner.end_step()
    assert measured == [*range(20, 60, 5), *range(60, 101, 20), *range(105, 126, 5)]


@pytest.mark.parametrize("hidden", [True, False])
def test_many_inputs_that_come_out_of_layers_are_measured_ever_more_rarely(hidden, monkeypatch):
    monkeypatch.setattr(input_learning, "_MANY_INPUTS", 3)
    monkeypatch.setattr(input_learning, "_RARER_AFTER", 2)
    learner, counted = Learner(), []
    for _ in range(19):
        before = learner.known.batches if learner.name in learner.optimizer.statistics else 0
        seen = learner.run(torch.randn(5, 3))
        seen.hidden = {learner.name} if hidden else set()
        learner.inputs.take(seen)
        learner.inputs.learn()
        counted.append(learner.known.batches - before)
        learner.end_step()
    assert [step for step, count in enumerate(counted) if count] == ([0, 3, 6, 12] if hidden else list(range(19)))


def learn_divided(batches):
    """Let as many threads as a step has micro-batches learn one of each step; return what each knows, and was told."""
    size = batches.shape[1]
    meeting = Meeting(size)

    def learn(index):
        learner = Learner(Shards(index, meeting))
        for batch in batches[:, index]:
            learner.learn(batch)
            learner.end_step()
        return learner

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(learn, range(size)))


@pytest.mark.parametrize("steps", [1, 7, 26])
@pytest.mark.parametrize("shards", [2, 3, 6])
def test_shards_learn_what_one_process_learns_in_turn(steps, shards):
    batches, alone = torch.randn(steps, shards, 5, 3), Learner()
    for step in batches:
        for batch in step:
            alone.learn(batch)
        alone.end_step()
    for divided in learn_divided(batches):
        assert torch.equal(divided.known.moment, alone.known.moment)
        assert divided.known.batches == alone.known.batches


def test_nothing_is_told_in_steps_that_are_not_measured():
    # Two micro-batches each until 20 are known, then the steps 10, 15, 20 and 25.
    learners = learn_divided(torch.randn(30, 2, 5, 3))
    assert [learner.inputs._agreement.processes.messages for learner in learners] == [14, 14]


def test_subspaces_that_do_not_ask_for_their_inputs_are_not_measured():
    learner = Learner()
    learner.blocks[0].subspace = "gaussian"
    learner.inputs.follow(learner.blocks)
    assert learner.inputs.measured(0) == set()
