"""A step with PolyStep leaves everything but what it trains as one plain run of the step does, whatever the step does.

Random steps that change their batch, parameters, buffers, attributes, lists and generators are run once on a copy, and
once by the engine; then everything that the two can reach is compared.
"""

import argparse
import copy
import io
import os
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_polystep import Engine, PolyStep, PolyStepStrategy
from lightning_polystep.randomness import noise_frame


class Box:
    """A plain object of the user's own."""

    total = 0

    def __init__(self):
        self.n, self.trace, self.inner = 0, torch.zeros(4), SimpleNamespace(seen=[])


TOTALS, COUNT = ModuleType("totals"), ContextVar("count", default=0)
TOTALS.n = 0


class Slotted:
    __slots__ = ("n", "names")

    def __init__(self):
        self.n, self.names = 0, ["a"]


class Log(list):
    """A list that knows how often it was written."""

    def __init__(self, items=()):
        super().__init__(items)
        self.writes = 0

    def append(self, item):
        self.writes += 1
        super().append(item)


class Net(nn.Module):
    def __init__(self, actions):
        super().__init__()
        self.actions = actions
        self.net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        self.average = nn.Linear(4, 2).requires_grad_(False)
        self.count = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.norm = nn.BatchNorm1d(4)
        self.norm.requires_grad_(False)
        self.register_buffer("running", torch.zeros(4))
        self.register_buffer("membrane", torch.zeros(4), persistent=False)
        self.calls, self.box, self.slots, self.log_of = 0, Box(), Slotted(), Log()
        self.boxes = {"list": [Box()], "deque": deque([1], maxlen=2), "set": {1}, "counter": Counter("a")}
        self.ordered, self.default = OrderedDict(b=1, a=2), defaultdict(list)
        self.array, self.matrix = np.zeros(3), [np.ones((2, 2)), (torch.zeros(2), [0])]
        self.torch_draws = torch.Generator().manual_seed(1)
        self.numpy_draws, self.old_draws = np.random.default_rng(1), np.random.RandomState(1)
        self.python_draws, self.in_a_dict = random.Random(1), {"draws": [np.random.default_rng(2)]}
        self.alone = [nn.BatchNorm1d(4)]  # in a list, where torch does not find it
        self.scaler = StandardScaler().fit(np.zeros((1, 4)))
        self.normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        self.metrics = {"mean": torchmetrics.MeanMetric()}
        self.options, self.text = argparse.Namespace(n=0), io.StringIO()
        self.keys = {Box(): 1}
        self.loop = [self.boxes]
        self.loop.append(self.loop)  # holds itself

    def forward(self, batch):
        x = batch["x"]
        for action in self.actions:
            x = ACTIONS[action](self, batch, x)
        return F.cross_entropy(self.net(x), batch["rest"][0])


def action(change):
    """A change of state, after which the inputs are read anew."""

    def run(net, batch, x):
        change(net, batch)
        return batch["x"]

    return run


def scaled(of):
    """The inputs are scaled by what a function makes of the state, which goes on each time."""
    return lambda net, batch, x: x * (1 + 0.1 * float(of(net, batch)))


def counted(net, _batch):
    net.calls += 1
    return net.calls


def boxed(net, _batch):
    net.box.n += 1
    net.box.trace = net.box.trace * 0.5 + 1
    net.box.inner.seen.append(net.box.n)
    net.boxes["list"][0].n += 2
    net.slots.n += 1
    net.slots.names.append("b")
    return net.box.n + net.slots.n


def averaged(net, _batch):
    net.average.weight.mul_(0.9).add_(1.0)
    net.average.bias.data.mul_(0.5)
    net.count += 1
    return net.average.weight.mean() + net.count.sum()


def in_other_memory(net, _batch):
    net.average.weight.data = net.average.weight.data * 0.5 + 1
    net.running.data = net.running.data + 1
    return net.average.weight.mean() + net.running.mean()


def kept(net, _batch):
    net.ordered.move_to_end("b")
    net.default["x"].append(1)
    net.boxes["deque"].append(3)
    net.boxes["set"].add(net.calls + 5)
    net.boxes["counter"].update("ab")
    net.boxes[f"new {len(net.boxes)}"] = [1]
    net.log_of.append(len(net.log_of))
    return len(net.log_of) + net.boxes["counter"]["a"]


def arrays(net, _batch):
    net.array[0] += 1
    net.matrix[0] *= 2
    net.matrix[1][0].add_(1)
    net.matrix[1][1].append(1)
    return net.array[0]


def shared(_net, _batch):
    Box.total += 1
    return Box.total


def counted_elsewhere(_net, _batch):
    TOTALS.n += 1
    COUNT.set(COUNT.get() + 1)
    os.environ["STEPS"] = os.environ.get("STEPS", "") + "x"
    return TOTALS.n + COUNT.get() + len(os.environ["STEPS"])


def of_libraries(net, batch):
    net.scaler.partial_fit(batch["x"].numpy())
    net.normal.loc.add_(1)
    net.metrics["mean"].update(float(net.normal.loc.sum()))
    net.options.n += 1
    net.text.write("a")
    next(iter(net.keys)).n += 1
    return net.scaler.mean_.sum() + net.normal.loc.sum() + net.options.n + net.text.tell()


def made(net, _batch):
    net.fresh = torch.ones(3)
    net.membrane = net.membrane * 0.5 + 1
    del net.box.inner
    net.box.inner = SimpleNamespace(seen=[1])
    return net.membrane.sum()


ACTIONS = {
    "scales the batch in place": action(lambda net, batch: batch["x"].mul_(0.5).sub_(0.1)),
    "replaces an entry of the batch": action(lambda net, batch: batch.update(x=batch["x"] + 1)),
    "changes a list in the batch": action(lambda net, batch: batch["rest"].append(batch["x"].sum())),
    "changes an array in the batch": scaled(lambda net, batch: batch["nested"][0]["array"].__iadd__(1).sum()),
    "takes an entry out of the batch": scaled(lambda net, batch: batch.pop("weight", 0.0)),
    "counts": scaled(counted),
    "writes plain objects": scaled(boxed),
    "writes frozen parameters": scaled(averaged),
    "gives tensors other memory": scaled(in_other_memory),
    "writes a buffer": scaled(lambda net, batch: net.running.add_(1).sum()),
    "normalises": lambda net, batch, x: net.alone[0](net.norm(x)),
    "writes containers": scaled(kept),
    "writes arrays": scaled(arrays),
    "counts in its class": scaled(shared),
    "counts in a module, a variable and the environment": scaled(counted_elsewhere),
    "writes objects of libraries": scaled(of_libraries),
    "spawns a generator": scaled(lambda net, batch: net.numpy_draws.spawn(1)[0].random()),
    "makes and deletes attributes": scaled(made),
    "draws from its torch generator": lambda net, batch, x: x + torch.rand(x.shape, generator=net.torch_draws),
    "draws from its numpy generators": scaled(lambda net, batch: net.numpy_draws.random() + net.old_draws.rand()),
    "draws from a generator in a dict": scaled(lambda net, batch: net.in_a_dict["draws"][0].random()),
    "draws from its Python generator": scaled(lambda net, batch: net.python_draws.random()),
    "draws from the global generators": scaled(lambda net, batch: random.random() + np.random.rand() + torch.rand(())),
    "goes to evaluation mode": action(lambda net, batch: net.norm.eval()),
}


def batch_of(seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=draw)
    return {
        "x": x,
        "rest": [torch.randint(2, (6,), generator=draw)],
        "nested": ({"array": np.ones(2)},),
        "weight": 0.5,
    }


def readable(value, seen=()):
    """Everything that a value holds, as numbers and names."""
    if id(value) in seen:
        return "again"
    seen = (*seen, id(value))
    for kinds, read in READERS:
        if isinstance(value, kinds):
            return read(value, seen)
    return readable(vars(value), seen) if hasattr(value, "__dict__") and not isinstance(value, type) else repr(value)


def items(value, seen):
    own = readable(vars(value), seen) if hasattr(value, "__dict__") else ()
    return [*(readable(each, seen) for each in value), *own]


def spawned(draws):
    return draws.bit_generator.seed_seq.n_children_spawned


READERS = (
    (torch.Tensor, lambda value, _: value.detach().flatten().tolist()),
    (np.ndarray, lambda value, _: value.tolist()),
    (torch.Generator, lambda value, _: value.get_state().tolist()),
    (random.Random, lambda value, _: value.getstate()),
    (np.random.Generator, lambda value, seen: readable((value.bit_generator.state, spawned(value)), seen)),
    (io.StringIO, lambda value, _: (value.getvalue(), value.tell())),
    (np.random.RandomState, lambda value, seen: readable(value.get_state(), seen)),
    (dict, lambda value, seen: [(readable(key, seen), readable(each, seen)) for key, each in value.items()]),
    (torchmetrics.MeanMetric, lambda value, _: (float(value.mean_value), float(value.weight))),
    (set, lambda value, _: sorted(value)),
    ((list, tuple, deque), items),
    (Slotted, lambda value, _: (value.n, value.names)),
)


def state(net, batch):
    """Everything but what is trained."""
    held = {
        n: v for n, v in vars(net).items() if not n.startswith(("_", "net")) and n not in {"trainer", "prepare_data"}
    }
    tensors = {n: t for n, t in [*net.named_parameters(), *net.named_buffers()] if not t.requires_grad}
    modes = {name: part.training for name, part in net.named_modules()}
    return {"held": held, "tensors": tensors, "modes": modes, "batch": batch}


class Outside:
    """What the engine's net and its twin share, because it is none of theirs."""

    @staticmethod
    def get():
        return Box.total, TOTALS.n, COUNT.get(), os.environ.get("STEPS", "")

    @staticmethod
    def set(values):
        Box.total, TOTALS.n, count, os.environ["STEPS"] = values
        COUNT.set(count)


def plain(net, batch, seed, step):
    """What one plain run of the step leaves behind, on the noise of the engine's step."""
    with torch.no_grad(), noise_frame(seed, step, 0):
        net(batch)


def compare(net, batch, twin, twins_batch):
    ours, theirs = readable(state(net, batch)), readable(state(twin, twins_batch))
    for (name, own), (_, other) in zip(ours, theirs, strict=True):
        assert own == other, name


chosen = st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=5)


@settings(max_examples=20)
@given(chosen, st.sampled_from(["auto", "loop"]))
def test_a_random_step_leaves_behind_what_one_run_of_it_does(actions, evaluation):
    check_steps(actions, evaluation)


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_each_kind_of_step_leaves_behind_what_one_run_of_it_does(name, evaluation):
    check_steps([name], evaluation)


def check_steps(actions, evaluation):
    torch.manual_seed(0)
    Outside.set((0, 0, 0, ""))
    net = Net(actions)
    twin = copy.deepcopy(net)
    before = copy.deepcopy(net.net.state_dict())
    engine = Engine(
        net, PolyStep(net.parameters(), lr=0.1, seed=0), evaluation=evaluation, max_candidates=24, announce=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2):
            batch, twins_batch, before_step = batch_of(step), batch_of(step), Outside.get()
            twin.net.load_state_dict(net.net.state_dict())
            engine.step(lambda: net(batch))  # noqa: B023 - called before the next batch comes
            ours = Outside.get()
            Outside.set(before_step)
            plain(twin, twins_batch, 0, step)
            assert ours == Outside.get()
            compare(net, batch, twin, twins_batch)
    assert any(not torch.equal(before[name], value) for name, value in net.net.state_dict().items())


class Task(pl.LightningModule):
    def __init__(self, actions):
        super().__init__()
        self.task = Net(actions)
        self.batches = []

    def training_step(self, batch, batch_idx):
        loss = self.task(batch)
        self.batches.append(batch)
        return loss

    def configure_optimizers(self):
        return PolyStep(self.parameters(), lr=0.1, seed=0)


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("half", [0, 1])
def test_the_strategy_leaves_behind_what_one_run_does(evaluation, half):
    names = sorted(ACTIONS)[half::2]
    torch.manual_seed(0)
    Outside.set((0, 0, 0, ""))
    task = Task(names)
    twin = copy.deepcopy(task.task)
    trainer = pl.Trainer(
        strategy=PolyStepStrategy(evaluation=evaluation, max_candidates=24, show_plan=False),
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*another loss.*")
        trainer.fit(task, DataLoader([batch_of(0)], batch_size=None))
    assert len(task.batches) == 1
    ours, twins_batch = Outside.get(), batch_of(0)
    Outside.set((0, 0, 0, ""))
    plain(twin, twins_batch, 0, 0)
    assert ours == Outside.get()
    compare(task.task, task.batches[0], twin, twins_batch)
