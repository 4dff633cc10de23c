"""Whatever a step writes while it is probed is put back: values, identities, and what was not there before."""

import copy
import logging
import sys
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from lightning_polystep.isolation import (
    BufferWatch,
    ProbeSideEffectError,
    TensorState,
    metrics_muted,
    silenced,
    unheard,
)
from lightning_polystep.snapshot import Snapshot

LARGE = 17 * 2**20 // 4
DEQUE_LENGTH = 2


class Untidy(nn.Module):
    """Keeps state of every kind that users keep."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.history, self.recent = [1.0], deque([1, 2], maxlen=DEQUE_LENGTH)
        self.seen, self.table = {1}, {"a": [1], "b": {"c": torch.zeros(2)}}
        self.pair = ([0], torch.zeros(1))
        self.counts, self.lists, self.ordered = Counter("ab"), defaultdict(list, x=[1]), OrderedDict(b=1, a=2)
        self.array = np.zeros(3)
        self.draw = torch.Generator().manual_seed(0)
        self.step_count, self.note, self.nothing = 0, "start", None
        self.average = {"0.weight": torch.ones(2, 2)}
        self.hidden = torch.zeros(3)
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("optional", None)

    def forward(self, x):
        self.history.append(2.0)
        self.recent.append(3)
        self.seen.update({2, 3})
        self.seen.discard(1)
        self.table["a"].append(2)
        self.table["b"]["c"] += 1
        self.table["new"] = 1
        self.pair[0].append(1)
        self.pair[1].add_(1)
        self.counts.update("bc")
        self.lists["y"].append(1)
        self.lists["x"].append(2)
        self.ordered.move_to_end("b")
        self.array[0] = 7.0
        torch.rand(3, generator=self.draw)
        self.step_count += 1
        self.note = "changed"
        self.nothing = 1
        self.average["0.weight"].mul_(0.9).add_(self.body[0].weight.detach(), alpha=0.1)
        self.hidden = self.hidden + 1
        self.total += 1
        self.optional = torch.ones(1)
        self.fresh = torch.ones(1)
        return self.body(x)


def own_state(module):
    """A deep copy of everything that is no parameter, generators as their states, containers with their order."""
    state = {
        f"{index}.{name}": value
        for index, part in enumerate(module.modules())
        for name, value in vars(part).items()
        if name not in {"_modules", "_parameters"}
    }
    return {name: readable(value) for name, value in state.items()}


def readable(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, dict):
        return [(key, readable(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple | deque):
        return [readable(entry) for entry in value]
    return copy.copy(value)


def identities(module):
    return {
        (index, name): id(value)
        for index, part in enumerate(module.modules())
        for name, value in vars(part).items()
        if isinstance(value, list | dict | set | deque | torch.Tensor | np.ndarray | torch.Generator)
    }


def test_everything_is_put_back_and_keeps_its_identity():
    module = Untidy()
    module(torch.randn(4, 2))
    state, same = own_state(module), identities(module)
    snapshot = Snapshot(module)
    for _ in range(3):
        with torch.no_grad():
            module(torch.randn(4, 2))
        changed = {name for name, value in own_state(module).items() if value != state.get(name)}
        assert len(changed) >= 12, f"the module changes little: {changed}"
        snapshot.restore()
        assert own_state(module) == state
        assert identities(module) == same


def test_the_first_run_creates_attributes_that_are_removed():
    module = Untidy()
    snapshot = Snapshot(module)
    module(torch.randn(4, 2))
    snapshot.restore()
    assert not hasattr(module, "fresh")
    assert module.optional is None


def test_other_references_to_a_container_stay_valid():
    module = nn.Identity()
    module.log = shared = []
    snapshot = Snapshot(module)
    module.log = ["another list"]
    shared.append(1)
    snapshot.restore()
    assert module.log is shared
    assert shared == []


def test_a_deque_keeps_its_length():
    module = nn.Identity()
    module.recent = deque([1, 2], maxlen=2)
    snapshot = Snapshot(module)
    module.recent.extend([3, 4])
    snapshot.restore()
    assert list(module.recent) == [1, 2]
    assert module.recent.maxlen == DEQUE_LENGTH


def test_a_tensor_that_was_resized_or_removed_comes_back():
    module = nn.Identity()
    module.state = state = torch.tensor([1.0, 2.0])
    snapshot = Snapshot(module)
    state.resize_(3).fill_(9.0)
    del module.state
    snapshot.restore()
    assert module.state is state
    assert state.tolist() == [1.0, 2.0]


def test_batch_norm_whose_kernel_hides_its_writes():
    norm = nn.BatchNorm1d(3)
    snapshot = Snapshot(norm)
    version = norm.running_mean._version
    norm(torch.randn(8, 3) + 5)
    assert norm.running_mean._version == version, "this torch counts the write: the test's premise is gone"
    assert norm.running_mean.abs().max() > 0
    snapshot.restore()
    assert norm.running_mean.tolist() == [0.0] * 3
    assert norm.running_var.tolist() == [1.0] * 3
    assert norm.num_batches_tracked == 0


def test_train_and_eval_are_put_back():
    module = nn.Sequential(nn.Dropout())
    snapshot = Snapshot(module)
    module.eval()
    snapshot.restore()
    assert module.training
    assert module[0].training


def test_parameters_are_not_the_business_of_a_snapshot():
    module = nn.Linear(1, 1)
    module.alias = module.weight
    snapshot = Snapshot(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
    snapshot.restore()
    assert module.weight.item() == 3.0


@pytest.mark.parametrize("kind", ["expanded", "sparse", "inference", "integer", "not a number", "jagged"])
def test_tensors_of_unusual_kinds_are_no_obstacle(kind):
    with torch.inference_mode(kind == "inference"):
        tensor = {
            "expanded": torch.arange(4.0).expand(3, 4),
            "sparse": torch.eye(3).to_sparse(),
            "inference": torch.ones(2),
            "integer": torch.arange(3),
            "not a number": torch.tensor([float("nan"), 1.0]),
            "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        }[kind]
    module = nn.Identity()
    module.attribute = tensor
    module.register_buffer("buffer", tensor)
    watch = BufferWatch(module)
    if kind != "not a number":
        assert watch.written(module) == set()
    snapshot = Snapshot(module)
    module.attribute = None
    snapshot.restore()
    assert module.attribute is tensor
    assert module.buffer is tensor


def test_a_large_tensor_is_watched_and_a_write_is_an_error():
    module = nn.Identity()
    module.register_buffer("table", torch.zeros(LARGE))
    snapshot = Snapshot(module)
    snapshot.restore()
    module.table[0] = 1.0
    with pytest.raises(ProbeSideEffectError, match="writes into a tensor of 17 MiB"):
        snapshot.restore()


def test_a_large_tensor_that_is_replaced_comes_back():
    module = nn.Identity()
    module.table = table = torch.zeros(LARGE)
    snapshot = Snapshot(module)
    module.table = torch.ones(LARGE)
    snapshot.restore()
    assert module.table is table


def test_skipped_types_are_left_alone():
    module = nn.ModuleDict({"metric": MeanMetric(), "norm": nn.BatchNorm1d(1)})
    snapshot = Snapshot(module, skip=(MeanMetric,))
    module["metric"].update(3.0)
    module["norm"](torch.randn(4, 1))
    snapshot.restore()
    assert float(module["metric"].compute()) == 3.0
    assert module["norm"].num_batches_tracked == 0


# Metrics.


class WithMetrics(nn.Module):
    def __init__(self):
        super().__init__()
        self.accuracy, self.mean = MulticlassAccuracy(3), MeanMetric()
        self.several = MetricCollection({"f1": MulticlassF1Score(3), "accuracy": MulticlassAccuracy(3)})


PREDICTED, TARGET = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])


def use(module):
    return [
        module.accuracy(PREDICTED, TARGET),
        module.mean(torch.tensor(3.0)),
        *module.several(PREDICTED, TARGET).values(),
        module.several["f1"].compute(),
    ]


def test_muted_metrics_are_not_a_number_and_do_not_move():
    module = WithMetrics()
    use(module)
    state = own_state(module)
    with metrics_muted(module):
        assert all(torch.isnan(value) for value in use(module))
        module.accuracy.update(PREDICTED, TARGET)
        module.accuracy.reset()
    assert own_state(module) == state
    assert float(module.accuracy.compute()) == pytest.approx(float(MulticlassAccuracy(3)(PREDICTED, TARGET)))
    assert not any(torch.isnan(value) for value in use(module))


def test_live_metrics_are_put_back_by_a_snapshot():
    module = WithMetrics()
    use(module)
    state = own_state(module)
    snapshot = Snapshot(module)
    module.mean.update(torch.tensor(100.0))
    module.accuracy(1 - PREDICTED, TARGET)
    module.several["f1"].reset()
    snapshot.restore()
    assert own_state(module) == state
    assert float(module.mean.compute()) == 3.0


def test_metrics_come_back_after_an_error():
    module = nn.ModuleList([MulticlassConfusionMatrix(3)])
    with pytest.raises(IndexError), metrics_muted(module):
        raise IndexError
    assert module[0](PREDICTED, TARGET).shape == (3, 3)


def test_silenced_methods_come_back_as_they_were():
    class Speaker:
        def say(self):
            return "class"

    plain, own = Speaker(), Speaker()
    own.say = mine = lambda: "instance"
    with silenced([(plain, "say"), (own, "say")], lambda: "nothing"):
        assert plain.say() == own.say() == "nothing"
    assert "say" not in vars(plain)
    assert own.say is mine
    assert plain.say() == "class"


# Buffers.


def test_written_buffers_are_found_by_value_identity_and_name():
    module = Untidy()
    module.register_buffer("constant", torch.ones(2))
    module.register_buffer("replaced", torch.ones(2))
    watch = BufferWatch(module)
    assert watch.written(module) == set()
    module(torch.randn(4, 2))
    module.replaced = torch.ones(2)
    assert watch.written(module) == {
        "total",
        "optional",
        "replaced",
        "body.1.running_mean",
        "body.1.running_var",
        "body.1.num_batches_tracked",
    }


def test_a_large_written_buffer_is_found_by_its_version():
    module = nn.Identity()
    module.register_buffer("table", torch.zeros(LARGE))
    watch = BufferWatch(module)
    assert watch.written(module) == set()
    module.table[0] = 1.0
    assert watch.written(module) == {"table"}


def test_a_container_survives_the_error_of_what_it_holds():
    module = nn.Identity()
    module.register_buffer("table", torch.zeros(LARGE))
    module.register_buffer("count", torch.zeros(()))
    module.box = [module.table]
    snapshot = Snapshot(module)
    module.table[0] = 1.0
    with pytest.raises(ProbeSideEffectError):
        snapshot.restore()
    assert set(module._buffers) == {"table", "count"}
    assert len(module.box) == 1


class Cell(nn.Module):
    """Keeps hidden state as neurons of spiking libraries do, and settings beside it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("membrane", torch.zeros(2), persistent=False)
        self.register_buffer("running", torch.zeros(2))
        self.hidden, self.setting, self.function = None, 1, torch.abs


def test_hidden_state_is_put_back_and_nothing_else():
    cell = Cell()
    before, membrane = TensorState([cell]), cell.membrane
    for _ in range(2):
        cell.membrane = torch.ones(3)
        cell.hidden, cell.fresh = torch.ones(1), torch.ones(1)
        membrane.add_(1)
        cell.register_buffer("more", torch.ones(1), persistent=False)
        cell.running += 1
        cell.setting, cell.function = 2, torch.relu
        before.restore()
        assert cell.membrane is membrane
        assert membrane.tolist() == [0.0, 0.0]
        assert cell.hidden is None
        assert not hasattr(cell, "fresh")
        assert not hasattr(cell, "more")
    assert (cell.running.tolist(), cell.setting, cell.function) == ([2.0, 2.0], 2, torch.relu)


def test_a_probe_prints_and_logs_nothing_and_passes_breakpoints(capsys, caplog):
    logger = logging.getLogger("of a user")
    with caplog.at_level(logging.INFO):
        with unheard():
            print("twice")
            logger.error("twice")
            breakpoint()
        print("once")
        logger.info("once")
    assert capsys.readouterr().out == "once\n"
    assert [record.message for record in caplog.records] == ["once"]


def test_an_error_in_a_probe_gives_the_output_back():
    stream = sys.stdout
    with pytest.raises(ValueError, match="mine"), unheard():
        raise ValueError("mine")
    assert sys.stdout is stream
