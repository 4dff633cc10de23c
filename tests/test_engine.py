"""The engine trains any module in plain PyTorch, moves nothing it should not, and repeats itself bit for bit."""

from collections import deque
from dataclasses import replace
from queue import SimpleQueue

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_polystep.clock import VERBS
from lightning_polystep.engine import Engine
from lightning_polystep.isolation import ProbeSideEffectError
from lightning_polystep.layers import LIF, LastMembrane, NotCalibratedError, Sliced, SpikeCount
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.scoring.stack import Capture
from models import Classifier, IntegerMLP, MoENet
from tests.helpers.engines import digest, engine_of, network, problem, spiking, train

# Training.


@pytest.mark.parametrize("seed", range(2))
def test_a_hard_spiking_network_learns(seed):
    module, losses, engine = train(40, spiking, seed=seed, rank=4, lr=0.3)
    inputs, targets = problem()
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]
    assert float((module(inputs).argmax(1) == targets).float().mean()) > 0.85
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {"tape"}


def test_the_loss_returned_is_that_before_the_step():
    torch.manual_seed(0)
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    engine = engine_of(module)
    expected = F.cross_entropy(module(inputs), targets)
    assert torch.equal(engine.step(lambda: F.cross_entropy(module(inputs), targets)), expected.detach())


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    first, losses, _ = train(6)
    torch.rand(100)
    again, losses_again, _ = train(6)
    assert digest(first) == digest(again)
    assert losses == losses_again
    other, *_ = train(6, seed=1)
    assert digest(other) != digest(first)


def test_all_tiers_make_the_same_step():
    """In float64 and at explicit rank; without one, the loop is given fewer candidates.

    Of a loss without softmax: that its scores compete only the tape tells.
    """

    def build():
        return network().double()

    def run(evaluation):
        torch.manual_seed(0)
        module, (inputs, targets) = build(), problem()
        engine = engine_of(module, rank=3, evaluation=evaluation)
        for _ in range(3):
            engine.step(lambda: F.multi_margin_loss(module(inputs.double()), targets))
        return module.state_dict()

    by_vmap, by_loop = run("auto"), run("loop")
    for name, tensor in by_vmap.items():
        torch.testing.assert_close(tensor, by_loop[name], rtol=1e-8, atol=1e-10)


def test_the_memory_budget_does_not_matter():
    def run(budget):
        torch.manual_seed(0)
        module, (inputs, targets) = network().double(), problem()
        engine = engine_of(module, rank=2, memory_budget=budget)
        for _ in range(2):
            engine.step(lambda: F.cross_entropy(module(inputs.double()), targets))
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    torch.testing.assert_close(run(1), run(2**40), rtol=1e-8, atol=1e-10)


def test_global_generators_are_left_alone():
    module, (inputs, targets) = network(), problem()
    engine = engine_of(module)
    state = torch.get_rng_state()
    for _ in range(2):
        engine.step(lambda: F.cross_entropy(module(inputs), targets))
    assert torch.equal(torch.get_rng_state(), state)


def test_autograd_is_off_and_no_gradient_appears():
    module, inputs = nn.Linear(6, 3), problem()[0]
    engine, seen = engine_of(module), SimpleQueue()  # which probes do not put back, unlike a list

    def closure():
        seen.put(torch.is_grad_enabled())
        return module(inputs).square().mean()

    loss = engine.step(closure)
    assert seen.qsize() > 1
    assert not any(seen.get() for _ in range(seen.qsize()))
    assert torch.is_grad_enabled()
    assert not loss.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_lower_precision_is_trained():
    module, inputs = nn.Linear(6, 3).bfloat16(), problem()[0].bfloat16()
    engine = engine_of(module)
    losses = [float(engine.step(lambda: (module(inputs) - 1).square().mean().float())) for _ in range(20)]
    assert min(losses) < 0.8 * losses[0]
    assert module.weight.dtype == torch.bfloat16


# Outcomes.


class Task(nn.Module):
    """A network with its loss, as a LightningModule holds them, in float64: equal costs then give equal steps."""

    def __init__(self, *, membranes=False, hidden=8, **neurons):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(6, hidden),
            LIF(0.9, 1.0, num_steps=6, **neurons),
            nn.Linear(hidden, 3),
            LIF(0.9, 0.7, return_membrane=membranes),
            LastMembrane() if membranes else SpikeCount(),
        )
        self.criterion = nn.CrossEntropyLoss()
        self.double()

    def loss(self, inputs, targets):
        return self.criterion(self.network(inputs), targets)


class Run:
    """A few steps of a task; ``late`` turns true before a step that a test names, for commit pass and probes alike."""

    def __init__(self, step, evaluation="auto", task=None, **options):
        self.task, self.step, self.late = task or Task(), step, False
        self.inputs, self.targets = problem(24)
        self.inputs = self.inputs.double()
        self.engine = engine_of(self.task, evaluation=evaluation, **{"rank": 2, **options})

    def __call__(self, steps, late_from=None, change=lambda _task: None):
        for index in range(steps):
            if index == late_from:
                self.late = True
                change(self.task)
            self.engine.step(lambda: self.step(self, self.task, self.inputs.clone(), self.targets))
        return self

    @property
    def tiers(self):
        return {assignment.block.name: assignment.tier.name for assignment in self.engine.plan.assignments}

    @property
    def notes(self):
        return " ".join(assignment.note for assignment in self.engine.plan.assignments)


def assert_same_parameters(first, second):
    for (name, a), b in zip(first.task.named_parameters(), second.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def plainly(_run, task, inputs, targets):
    return task.loss(inputs, targets)


OUTCOMES = {"network.0": "outcome", "network.2": "outcome"}


@pytest.mark.parametrize("membranes", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_outcomes_make_the_same_steps_as_the_loop(membranes, learned):
    def task():
        beta = {"reset_mechanism": "subtract"} if membranes else {}
        return Task(membranes=membranes, learn_beta=learned, learn_threshold=learned, **beta)

    by_outcome, by_loop = (Run(plainly, evaluation, task())(5) for evaluation in ("auto", "loop"))
    assert {name: by_outcome.tiers[name] for name in OUTCOMES} == OUTCOMES
    assert_same_parameters(by_outcome, by_loop)
    start = Task(membranes=membranes, learn_beta=learned, learn_threshold=learned)
    moved = {
        name
        for (name, a), b in zip(by_outcome.task.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    constants = {"network.1.beta", "network.1.threshold"}
    assert moved >= (constants if learned else set())
    assert moved - constants == {"network.0.weight", "network.0.bias", "network.2.weight", "network.2.bias"}


def test_the_plain_implementation_makes_the_same_steps(monkeypatch):
    fused = Run(plainly)(4)
    monkeypatch.setenv("POLYSTEP_KERNELS", "reference")
    assert_same_parameters(fused, Run(plainly)(4))


def test_threads_do_not_change_a_bit_of_the_outcome():
    def run(threads):
        torch.set_num_threads(threads)
        return digest(Run(plainly, task=Task(hidden=40), rank=4)(4).task)

    assert run(1) == run(2)


def test_augmentation_inside_the_network_call_is_scored_by_outcomes():
    def step(_run, task, inputs, targets):
        return task.loss(inputs + 0.1 * torch.randn_like(inputs), targets)

    by_outcome, by_loop = (Run(step, evaluation)(4) for evaluation in ("auto", "loop"))
    assert by_outcome.tiers == OUTCOMES
    assert_same_parameters(by_outcome, by_loop)


def _mixup(task, x, y):
    scores = task.network(x)
    return 0.7 * task.criterion(scores, y) + 0.3 * task.criterion(scores, y.flip(0))


def _change_in_place(task, x, y):
    loss = task.loss(x, y)
    x.mul_(2)
    return loss


# What a step may do besides criterion(network(x), y), and the reason that the plan gives.
MORE = {
    "a penalty": (
        lambda t, x, y: t.loss(x, y) + 1e-2 * t.network[0].weight.square().sum(),
        "the step returned a loss of",
    ),
    "a scale": (lambda t, x, y: 3 * t.loss(x, y), "the step returned a loss of"),
    "the network twice": (lambda t, x, y: t.criterion(t.network(x) + t.network(-x), y), "Linear layers 4 times"),
    "the criterion twice": (lambda t, x, y: t.loss(x, y) + t.loss(x.flip(0), y), "the criterion ran 2 times"),
    "mixup": (_mixup, "the criterion ran 2 times, and the network's Linear layers 2 times"),
    "ignored targets": (lambda t, x, y: t.loss(x, y.where(y > 0, -100)), "some targets are to be ignored"),
    "another loss": (lambda t, x, y: F.cross_entropy(t.network(x), y), "the criterion ran 0 times"),
    "a temperature": (lambda t, x, y: t.criterion(t.network(x) / 2, y), "had a hand in its output"),
    "work between layers": (
        lambda t, x, y: t.criterion(t.network[2:](F.dropout(t.network[:2](x), 0.5)), y),
        "something beside LIF layer 1 had a hand in its output",
    ),
    "a change in place": (_change_in_place, "something beside Linear layer 1 had a hand in its output"),
}


@pytest.mark.parametrize(("more", "reason"), MORE.values(), ids=MORE)
def test_a_step_that_does_more_is_not_scored_by_outcomes(more, reason):
    def step(_run, task, inputs, targets):
        return more(task, inputs, targets)

    by_plan, by_loop = (Run(step, evaluation)(2) for evaluation in ("auto", "loop"))
    assert "outcome" not in by_plan.tiers.values()
    assert reason in by_plan.notes
    assert_same_parameters(by_plan, by_loop)


@pytest.mark.parametrize(("more", "reason"), MORE.values(), ids=MORE)
def test_a_step_that_does_more_from_some_step_on_is_noticed_then(more, reason):
    def step(run, task, inputs, targets):
        return more(task, inputs, targets) if run.late else task.loss(inputs, targets)

    run, by_loop = Run(step), Run(step, "loop")(5, late_from=2)
    run(2)
    assert run.tiers == OUTCOMES
    with pytest.warns(UserWarning, match="The network is scored as any other from now on") as caught:
        run(3, late_from=0)
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert "outcome" not in run.tiers.values()
    assert reason in run.notes
    assert_same_parameters(run, by_loop)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("late", [False, True])
def test_hooks_that_change_an_output_are_noticed(place, late):
    """A hook would be missed by a look at the loss alone, which agrees."""

    def hook(task):
        task.network[place].register_forward_hook(lambda _module, _args, output: 1.5 * output)

    run, by_loop = Run(plainly), Run(plainly, "loop")
    for each in (run, by_loop):
        with torch.no_grad():
            each.task.network[2].weight.mul_(4)
    if late:
        by_loop(4, 2, hook)
        with pytest.warns(UserWarning, match="had a hand in its output") as caught:
            run(4, 2, hook)
        assert len(caught) == 1
    else:
        by_loop(2, 0, hook)
        run(2, 0, hook)
    assert "outcome" not in run.tiers.values()
    assert_same_parameters(run, by_loop)


def test_neurons_that_the_user_changes_are_followed():
    def change(task):
        task.network[1].reset_mechanism, task.network[1].num_steps = "subtract", 4
        task.network[1].beta.fill_(0.5)
        task.network[3].spike_on = "gt"
        task.criterion.label_smoothing = 0.1

    by_outcome, by_loop = (Run(plainly, evaluation)(4, 2, change) for evaluation in ("auto", "loop"))
    assert by_outcome.tiers == OUTCOMES
    assert_same_parameters(by_outcome, by_loop)


def test_a_network_that_is_replaced_later_is_noticed():
    def change(task):
        task.network = Task().network
        run.engine.optimizer.param_groups[0]["params"] = list(task.parameters())

    run = Run(plainly)
    with pytest.warns(UserWarning, match="network is another Sequential"):
        run(3, 1, change)
    assert set(run.tiers.values()) == {"outcome"}, "the plan is made anew, for the new one"


def test_frozen_layers_are_left_out_and_the_others_still_scored_by_outcomes():
    def change(task):
        task.network[0].requires_grad_(False)
        task.network[2].bias.requires_grad_(False)

    by_outcome, by_loop = (Run(plainly, evaluation)(4, 2, change) for evaluation in ("auto", "loop"))
    assert by_outcome.tiers == {"network.2": "outcome"}
    assert_same_parameters(by_outcome, by_loop)


def test_tied_weights_are_not_scored_by_outcomes():
    def task():
        made = Task(hidden=6)
        made.network[2], made.network[3] = nn.Linear(6, 6).double(), LIF(0.9, 0.7)
        made.network[2].weight = made.network[0].weight
        return made

    run, by_loop = (Run(plainly, evaluation, task())(3) for evaluation in ("auto", "loop"))
    assert run.tiers["network.0"] == "tape"
    assert "its weight belongs to several layers" in run.notes
    assert_same_parameters(run, by_loop)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_that_is_computed_is_not_scored_by_outcomes(norm):
    def task():
        made = Task()
        norm(made.network[0])
        return made

    run, by_loop = (Run(plainly, evaluation, task())(3) for evaluation in ("auto", "loop"))
    assert "outcome" not in {tier for name, tier in run.tiers.items() if name.startswith("network.0")}
    assert "not as part of a stack: " in run.notes
    assert_same_parameters(run, by_loop)


def test_an_output_that_the_module_computes_itself_is_not_scored_by_outcomes():
    def task():
        made = Task()
        linear = made.network[0]
        linear.forward = lambda x: F.linear(x, linear.weight, linear.bias).relu()
        return made

    run, by_loop = (Run(plainly, evaluation, task())(3) for evaluation in ("auto", "loop"))
    assert "outcome" not in run.tiers.values()
    assert "something beside Linear layer 1 had a hand in its output" in run.notes
    assert_same_parameters(run, by_loop)


def test_micro_batches_are_scored_each_by_its_own_outcomes():
    def run(evaluation):
        made = Run(plainly, evaluation)
        for _ in range(3):
            made.engine.optimizer.zero_grad()
            for part in range(0, 24, 8):
                inputs, targets = made.inputs[part : part + 8], made.targets[part : part + 8]
                with made.engine.observing():
                    loss = made.task.loss(inputs, targets)
                made.engine.probe(lambda x=inputs, y=targets: made.task.loss(x, y), loss)
            made.engine.optimizer.step()
        return made

    by_outcome, by_loop = run("auto"), run("loop")
    assert by_outcome.tiers == OUTCOMES
    assert_same_parameters(by_outcome, by_loop)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_not_scored_by_outcomes(dtype):
    torch.manual_seed(0)
    task, (inputs, targets) = Task().to(dtype), problem()
    engine = engine_of(task, rank=4, lr=0.3)
    losses = [
        float(engine.step(lambda: task.criterion(task.network(inputs.to(dtype)).float(), targets))) for _ in range(15)
    ]
    tiers = {assignment.tier.name for assignment in engine.plan.assignments}
    assert "outcome" not in tiers
    assert f"not as part of a stack: the network computes in {dtype}" in str(engine.plan).replace("\n", " ")
    assert min(losses[5:]) < losses[0]


# The commit pass counts once.


class Bookkeeper(nn.Module):
    """Counts its calls in every way that probes could disturb."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)
        self.accuracy = MulticlassAccuracy(3)
        self.calls, self.log, self.recent, self.names, self.table = 0, [], deque(maxlen=4), set(), {"n": [0]}
        self.average = {"norm": torch.zeros(())}
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs, targets):
        scores = self.norm(self.layer(inputs))
        loss = F.cross_entropy(scores, targets)
        self.accuracy(scores, targets)
        self.calls += 1
        self.log.append(self.calls)
        self.recent.append(self.calls)
        self.names.add(self.calls)
        self.table["n"][0] += 1
        self.average["norm"] = self.average["norm"] + 1
        self.count += 1
        return loss


def test_probes_leave_no_trace_on_the_module():
    module, batch = Bookkeeper(), problem()
    boxes = module.log, module.recent, module.names, module.table, module.table["n"]
    engine = engine_of(module)
    for _ in range(5):
        engine.step(lambda: module(*batch))
    assert module.calls == int(module.count) == int(module.norm.num_batches_tracked) == 5
    assert module.accuracy._update_count == 5
    assert float(module.average["norm"]) == 5
    assert boxes == ([1, 2, 3, 4, 5], deque([2, 3, 4, 5]), {1, 2, 3, 4, 5}, {"n": [5]}, [5])
    now = module.log, module.recent, module.names, module.table, module.table["n"]
    assert all(a is b for a, b in zip(boxes, now, strict=True))


def test_running_statistics_are_those_of_the_commit_passes():
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), problem()[0]
    alone = nn.BatchNorm1d(6)
    engine = engine_of(module)
    for _ in range(4):
        alone(inputs)
        engine.step(lambda: module(inputs).square().mean())
    for name, expected in alone.named_buffers():
        assert torch.equal(module[0].get_buffer(name), expected)


def test_a_large_tensor_that_the_step_writes_is_an_error():
    module, inputs = nn.Linear(6, 3), problem()[0]
    module.register_buffer("memory", torch.zeros(5 * 2**20))
    engine = engine_of(module)

    def closure():
        module.memory[0] += 1
        return module(inputs).square().mean()

    before = digest(module)
    with pytest.raises(ProbeSideEffectError, match="tensor of 20 MiB"):
        engine.step(closure)
    assert digest(module) == before


def test_a_loss_made_of_a_metric_is_trained():
    torch.manual_seed(0)
    module, (inputs, targets) = nn.Sequential(nn.Linear(6, 3)), problem()
    module.f1 = MulticlassF1Score(3, average="micro")

    def closure():
        module.f1.reset()
        module.f1.update(module[0](inputs), targets)
        return 1 - module.f1.compute()

    engine = engine_of(module, rank=4)
    losses = [float(engine.step(closure)) for _ in range(20)]
    assert engine.plan.live_metrics
    assert min(losses[-5:]) < 0.75 * losses[0]
    assert module.f1._update_count == 1


@pytest.mark.parametrize("samples", [10, 95])
def test_training_with_slices_is_training(samples):
    def trained(size):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 16), LIF(num_steps=8), nn.Linear(16, 8), LIF(), nn.Linear(8, 3), LIF(), SpikeCount()]
        module, (inputs, targets) = nn.Module(), problem()
        module.network, module.criterion = Sliced(*layers, samples=size), nn.CrossEntropyLoss()
        module.double()
        engine = engine_of(module, lr=0.3)
        losses = [
            float(engine.step(lambda: module.criterion(module.network(inputs.double()), targets))) for _ in range(12)
        ]
        assert [a.tier.name for a in engine.plan.assignments] == ["incremental", "incremental", "outcome"]
        return losses, module.state_dict()

    (losses, whole), (_, sliced) = trained(None), trained(samples)
    assert losses[-1] < losses[0]
    for name, value in whole.items():
        torch.testing.assert_close(sliced[name], value, rtol=0, atol=1e-6)


# A part of the samples.


def sampling_run(certain_error=0.6):
    task = Task(hidden=16)
    optimizer = PolyStep(task.parameters(), seed=0, rank=2, lr=0.3, importance_sampling=certain_error)
    return Run(plainly, task=task, optimizer=optimizer)


def test_training_on_a_part_of_the_samples_is_training():
    def loss(run):
        with torch.no_grad():
            return float(run.task.loss(run.inputs, run.targets))

    run = sampling_run()
    before = loss(run)
    assert loss(run(25)) < 0.5 * before
    assert "samples: by importance" in str(run.engine.plan)
    assert digest(run.task) == digest(sampling_run()(25).task) != digest(sampling_run(0.0)(25).task)


def test_samples_are_drawn_anew_in_each_step_and_micro_batch(monkeypatch):
    run, drawn = sampling_run(), []

    def select(capture, *given, select=Capture.select):
        select(capture, *given)
        drawn.append(capture.selection.chosen)

    def select_twice(recognised, *given, select_samples=Recognised.select_samples):
        select_samples(recognised, *given)
        select_samples(recognised, *given)

    run(1)
    monkeypatch.setattr(Capture, "select", select)
    monkeypatch.setattr(Recognised, "select_samples", select_twice)
    for _ in range(2):
        with run.engine.observing():
            loss = run.task.loss(run.inputs, run.targets)
        before = replace(run.engine.optimizer.progress)
        run.engine.probe(lambda: run.task.loss(run.inputs, run.targets), loss, samples=len(run.inputs))
        after = run.engine.optimizer.progress
        assert after.samples - before.samples == int(drawn[-1].sum()) * (after.candidates - before.candidates)
        run.engine.optimizer.step()
    assert len(drawn) == 4
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_negative_error_is_refused():
    with pytest.raises(ValueError, match=r"importance_sampling=-0\.1\): the error must be at least 0"):
        PolyStep(nn.Linear(2, 2).parameters(), importance_sampling=-0.1)


# What is not finite.


@pytest.mark.parametrize("evaluation", ["tape", "loop"])
def test_candidates_that_are_not_finite_never_win(evaluation):
    """The loss falls towards a cliff beyond which it is NaN."""
    position = nn.Parameter(torch.zeros(2))
    module = nn.ParameterList([position])
    optimizer = PolyStep(module.parameters(), lr=0.05, seed=0, subspace="full", momentum=0.0)
    engine = engine_of(module, optimizer=optimizer, evaluation=evaluation)

    def closure():
        first, second = module[0]
        return torch.where(first > 0.5, torch.nan, -first) + second.square()

    for _ in range(40):
        loss = engine.step(closure)
        assert torch.isfinite(loss)
    assert 0.1 < float(position[0].detach()) <= 0.5


# What is missing, or has nothing to do.


def test_a_missing_calibration_stops_the_first_step():
    module, (inputs, targets) = Classifier(IntegerMLP((6, 5, 3)), 3), problem()
    with pytest.raises(NotCalibratedError, match="has no scale yet: calibrate first"):
        engine_of(module).step(lambda: module.criterion(module.network(inputs), targets))


@pytest.mark.filterwarnings("ignore:At pass .* experts have no sample")
def test_an_expert_that_no_sample_reaches_is_named_and_stays_as_it_is():
    module, (inputs, targets) = Classifier(MoENet((6, 5, 3), num_experts=2), 3), problem()
    router, (_, unreached) = module.network[3].router, module.network[3].experts
    with torch.no_grad():
        router.bias.copy_(torch.tensor([0.0, -1e6]))
    engine = engine_of(module)
    before = {name: value.clone() for name, value in unreached.state_dict().items()}
    losses = [float(engine.step(lambda: module.criterion(module.network(inputs), targets))) for _ in range(15)]
    assert losses[-1] < losses[0]
    notes = {a.block.name: a.note for a in engine.plan.assignments}
    assert "nothing reached it in the first batch" in notes["network.3.experts.1.0"]
    assert "nothing reached it" not in notes["network.3.experts.0.0"]
    assert engine.optimizer.binding.report["flat_rows"] > 0
    for name, value in unreached.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-5, msg=f"{name} moved without a signal")


# What is refused.


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.LazyLinear(2)), "is lazy"),
        (nn.Linear(2, 2).requires_grad_(False), "no trainable parameter"),
        (nn.Linear(2, 2, dtype=torch.complex64), "is complex"),
        (nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)]), "no trainable"),
    ],
)
def test_modules_that_cannot_be_probed_are_refused(module, message):
    optimizer = PolyStep([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=message):
        Engine(module, optimizer, announce=None)


@pytest.mark.parametrize("loss", [None, 1.0, torch.tensor(3)])
def test_a_closure_without_a_loss_is_refused(loss):
    module = nn.Linear(2, 2)
    before = digest(module)
    with pytest.raises(ValueError, match="as its loss: return a floating-point scalar tensor"):
        engine_of(module).step(lambda: loss)
    assert digest(module) == before


def test_a_loss_per_sample_is_refused():
    module, inputs = nn.Linear(6, 3), problem()[0]
    before = digest(module)
    with pytest.raises(ValueError, match=r"loss of shape \(96,\); return a scalar"):
        engine_of(module).step(lambda: module(inputs).square().mean(1))
    assert digest(module) == before


# What it tells.


def test_the_plan_is_announced_once():
    seen = []
    train(3, announce=seen.append)
    assert len(seen) == 1
    assert "PolyStep plan" in str(seen[0])


def test_the_plan_goes_to_standard_error(capsys):
    module, inputs = nn.Linear(6, 3), problem()[0]
    Engine(module, PolyStep(module.parameters(), seed=0)).step(lambda: module(inputs).square().mean())
    out, err = capsys.readouterr()
    assert out == ""
    assert "PolyStep plan" in err
    assert "tape" in err


def test_the_report_holds_the_figures_of_the_step():
    module, _, engine = train(1)
    report = engine.optimizer.binding.report
    assert report["candidates"] == engine.optimizer.progress.candidates == 10 * 8 + 2 * 10 * 2 + 3 * 8
    assert float(report["cost_spread"]) > 0
    assert 1 <= float(report["effective_vertices"]) <= 8
    assert 0 <= float(report["flat_rows"]) <= 1
    moved = sum(p.detach().double().square().sum() for p in _moves(module))
    assert float(report["step_norm"]) == pytest.approx(float(moved.sqrt()), rel=1e-4)


def _moves(module):
    torch.manual_seed(0)
    return [a.detach() - b.detach() for a, b in zip(module.parameters(), network().parameters(), strict=True)]


def test_verbs_are_timed_and_profiled():
    spans = []

    class Span:
        def __init__(self, verb):
            self.verb = verb

        def __enter__(self):
            spans.append(self.verb)

        def __exit__(self, *_):
            pass

    module, inputs = nn.Linear(6, 3), problem()[0]
    engine = engine_of(module, profile=Span)
    engine.step(lambda: module(inputs).square().mean())
    assert spans == ["observe", "propose", "score", "transport", "move"]
    assert set(engine.clock.seconds) == set(VERBS)
    assert all(seconds > 0 for seconds in engine.clock.seconds.values())


# Null candidates.


class SpikingTask(nn.Module):
    """What outcome scoring recognises."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(6, 8), LIF(0.9, 1.0, num_steps=5), nn.Linear(8, 3), LIF(0.9, 1.0), SpikeCount()
        )
        self.criterion = nn.CrossEntropyLoss()


def changed(task, proposal, inputs):
    """Which sample's scores each candidate changes, (candidates, samples), by writing each into the weights."""
    linear, found = proposal.block.site, []
    before = [parameter.detach().clone() for parameter in (linear.weight, linear.bias)]
    scores = task.network(inputs)
    for row, displacement in zip(*proposal.displacements(0, proposal.candidates), strict=True):
        linear.weight[row] += displacement[:-1]
        linear.bias[row] += displacement[-1]
        found.append((task.network(inputs) != scores).any(1))
        for parameter, value in zip((linear.weight, linear.bias), before, strict=True):
            parameter.copy_(value)
    return torch.stack(found)


@pytest.mark.parametrize("evaluation", ["auto", "tape", "loop"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@torch.no_grad()
def test_null_candidates_are_those_that_leave_every_score_as_it_was(evaluation, micro_batches):
    torch.manual_seed(0)
    task, (inputs, targets) = SpikingTask().double(), problem(8 * micro_batches)
    optimizer = PolyStep(task.parameters(), seed=0, rank=4, rotations=1, probe_radius=0.05)
    engine = engine_of(task, optimizer=optimizer, evaluation=evaluation)

    def loss_of(x, y):
        return task.criterion(task.network(x.double()), y)

    for x, y in zip(inputs.split(8), targets.split(8), strict=True):
        with engine.observing():
            loss = loss_of(x, y)
        engine.probe(lambda x=x, y=y: loss_of(x, y), loss, samples=len(x))
    tiers = {assignment.tier.name for assignment in engine.plan.assignments}
    assert tiers == {{"auto": "outcome", "tape": "tape", "loop": "loop"}[evaluation]}
    expected = {
        proposal.block.name: float((~changed(task, proposal, inputs.double()).any(1)).double().mean())
        for proposal in optimizer.binding.pending.proposals
    }
    optimizer.step()
    shares = {name: float(share) for name, share in optimizer.binding.null_candidates.items()}
    assert shares == pytest.approx(expected)
    assert any(0 < share < 1 for share in shares.values())


@pytest.mark.parametrize("evaluation", ["auto", "tape"])
@torch.no_grad()
def test_changed_pairs_are_those_with_other_scores_where_the_tier_can_tell(evaluation):
    torch.manual_seed(0)
    task, (inputs, targets) = SpikingTask().double(), problem(8)
    optimizer = PolyStep(task.parameters(), seed=0, rank=4, probe_radius=0.1)
    engine = engine_of(task, optimizer=optimizer, evaluation=evaluation, count_changed_pairs=True)

    def closure():
        return task.criterion(task.network(inputs.double()), targets)

    with engine.observing():
        loss = closure()
    engine.probe(closure, loss)
    found = optimizer.binding.changed_pairs
    if evaluation == "tape":
        assert found == {}
        return
    proposals = optimizer.binding.pending.proposals
    assert found == {
        p.block.name: pytest.approx(float(changed(task, p, inputs.double()).double().mean())) for p in proposals
    }
    assert all(0 < share < 1 for share in found.values())


def test_changed_pairs_are_not_counted_unless_asked_for():
    task, (inputs, targets) = SpikingTask(), problem(8)
    engine = engine_of(task)
    engine.step(lambda: task.criterion(task.network(inputs), targets))
    assert engine.optimizer.binding.changed_pairs == {}


# Modules that are no plain trees of layers.


class Sized(nn.Sequential):
    """Has a length, of nothing in it that counts."""

    def __len__(self):
        raise TypeError("a network of ours has no length")


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), lambda net: Sized(*net)])
def test_children_without_a_truth_value(wrap):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(), nn.ReLU(), nn.Linear(6, 3))
    module = nn.ModuleDict({"net": wrap(net)})
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    losses = [float(engine.step(lambda: F.cross_entropy(module["net"](x), y))) for _ in range(5)]
    assert losses[-1] < losses[0]


class TimeAndBatch(nn.Conv2d):
    """Folds time into the batch, as spiking libraries do in their multi-step mode."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_convolution_over_time_and_batch_is_a_site():
    torch.manual_seed(0)
    module = nn.ModuleList([TimeAndBatch(1, 2, 3), nn.Linear(2 * 4 * 4, 3)])
    x, y = torch.randn(3, 8, 1, 6, 6), torch.arange(8) % 3
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    losses = [
        float(engine.step(lambda: F.cross_entropy(module[1](module[0](x).mean(0).flatten(1)), y))) for _ in range(6)
    ]
    assert losses[-1] < losses[0]
    assert engine.plan.assignments[0].block.subspace == "inputs"


def test_spikingjelly_in_its_multi_step_mode():
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    torch.manual_seed(0)
    module = nn.ModuleList([layer.Conv2d(1, 2, 3, step_mode="m"), nn.Linear(2 * 4 * 4, 3)])
    x, y = torch.randn(3, 8, 1, 6, 6), torch.arange(8) % 3
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    losses = [
        float(engine.step(lambda: F.cross_entropy(module[1](module[0](x).mean(0).flatten(1)), y))) for _ in range(6)
    ]
    assert losses[-1] < losses[0]
