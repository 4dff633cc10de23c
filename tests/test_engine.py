"""The engine trains any module in plain PyTorch, moves nothing it should not, and repeats itself bit for bit."""

import hashlib
import warnings
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_polystep.engine import VERBS, Engine, VerbClock
from lightning_polystep.isolation import ProbeSideEffectError
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.optimizer import PolyStep


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def problem(samples=96):
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=draw)
    return inputs, (inputs @ torch.randn(6, 3, generator=draw)).argmax(1)


def spiking():
    return nn.Sequential(
        nn.Linear(6, 16),
        LIF(0.9, 1.0, num_steps=8, learn_beta=True, learn_threshold=True),
        nn.Linear(16, 3),
        LIF(0.9, 1.0),
        SpikeCount(),
    )


def network():
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3))


def engine_of(module, *, seed=0, rank=4, lr=0.1, optimizer=None, **options):
    optimizer = optimizer or PolyStep(module.parameters(), seed=seed, rank=rank, lr=lr)
    return Engine(module, optimizer, **{"announce": None, **options})


def train(steps, build=network, **options):
    torch.manual_seed(0)
    module, (inputs, targets) = build(), problem()
    engine = engine_of(module, **options)
    losses = [float(engine.step(lambda: F.cross_entropy(module(inputs), targets))) for _ in range(steps)]
    return module, losses, engine


# Training.


@pytest.mark.parametrize("seed", range(2))
def test_a_hard_spiking_network_learns(seed):
    module, losses, engine = train(40, spiking, seed=seed, rank=4, lr=0.3)
    inputs, targets = problem()
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]
    assert float((module(inputs).argmax(1) == targets).float().mean()) > 0.85
    assert {assignment.tier.name for assignment in engine.plan.assignments} <= {"vmap (shift)", "vmap (parameters)"}


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
    """In float64 and at explicit rank; without one, the loop is given fewer candidates."""

    def build():
        return network().double()

    def run(evaluation):
        torch.manual_seed(0)
        module, (inputs, targets) = build(), problem()
        engine = engine_of(module, rank=3, evaluation=evaluation)
        for _ in range(3):
            engine.step(lambda: F.cross_entropy(module(inputs.double()), targets))
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
    engine, seen = engine_of(module), []

    def closure():
        seen.append(torch.is_grad_enabled())
        return module(inputs).square().mean()

    loss = engine.step(closure)
    assert len(seen) > 1
    assert not any(seen)
    assert torch.is_grad_enabled()
    assert not loss.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_lower_precision_is_trained():
    module, inputs = nn.Linear(6, 3).bfloat16(), problem()[0].bfloat16()
    engine = engine_of(module)
    losses = [float(engine.step(lambda: (module(inputs) - 1).square().mean().float())) for _ in range(20)]
    assert min(losses) < 0.8 * losses[0]
    assert module.weight.dtype == torch.bfloat16


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


# What is not finite.


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_moves_nothing_and_is_counted(bad):
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    engine, scale = engine_of(module), 1.0

    def closure():
        return scale * F.cross_entropy(module(inputs), targets)

    engine.step(closure)
    before, moment = digest(module), engine.optimizer.state[module.weight]["momentum_buffer"].clone()
    scale = bad
    with pytest.warns(UserWarning, match="loss of a batch is not finite") as caught:
        skipped = [engine.step(closure) for _ in range(3)]
    assert not torch.isfinite(torch.stack(skipped)).any()
    assert len(caught) == 1
    assert digest(module) == before
    assert torch.equal(engine.optimizer.state[module.weight]["momentum_buffer"], moment)
    assert (engine.optimizer.progress.skipped, engine.optimizer.progress.step) == (3, 4)
    scale = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(closure)
    assert digest(module) != before


def test_inputs_that_are_not_finite_do_not_poison_the_basis():
    module, (inputs, targets) = nn.Linear(6, 3), problem()
    broken = inputs.clone()
    broken[0, 0] = float("nan")
    engine = engine_of(module)
    with pytest.warns(UserWarning, match="not finite"):
        engine.step(lambda: F.cross_entropy(module(broken), targets))
    losses = [float(engine.step(lambda: F.cross_entropy(module(inputs), targets))) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.parametrize("evaluation", ["vmap", "loop"])
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


def test_one_bad_micro_batch_of_two_is_left_out():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    second.load_state_dict(first.state_dict())
    inputs = problem()[0]

    def gather(module, *scales):
        engine = engine_of(module)
        for scale in scales:

            def evaluate(scale=scale):
                return scale * module(inputs).square().mean()

            with engine.observing():
                loss = evaluate()
            engine.probe(evaluate, loss, samples=len(inputs))
        assert engine.optimizer.progress.micro_batch == len(scales), "each has noise of its own"
        engine.optimizer.step()
        return engine.optimizer.progress

    with pytest.warns(UserWarning, match="not finite"):
        progress = gather(first, 1.0, float("nan"))
    alone = gather(second, 1.0)
    assert digest(first) == digest(second)
    assert (progress.skipped, alone.skipped) == (1, 0)
    assert progress.candidates == alone.candidates


# Which parameters move.


def test_parameters_that_are_frozen_later_stay_and_move_again_when_unfrozen():
    torch.manual_seed(0)
    module, (inputs, targets) = network(), problem()
    engine = engine_of(module)

    def steps(count):
        before = [p.detach().clone() for p in module.parameters()]
        for _ in range(count):
            engine.step(lambda: F.cross_entropy(module(inputs), targets))
        return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]

    assert all(steps(2))
    module[0].requires_grad_(False)
    module[4].bias.requires_grad_(False)
    moved = dict(zip([name for name, _ in module.named_parameters()], steps(2), strict=True))
    assert moved == {
        "0.weight": False,
        "0.bias": False,
        "1.weight": True,
        "1.bias": True,
        "4.weight": True,
        "4.bias": False,
    }
    module.requires_grad_(True)
    assert all(steps(2))


def test_parameters_frozen_from_the_start_stay():
    module, inputs = nn.Linear(6, 3), problem()[0]
    module.weight.requires_grad_(False)
    before = module.weight.clone()
    bias = module.bias.detach().clone()
    engine = engine_of(module)
    engine.step(lambda: (module(inputs) - 1).square().mean())
    assert torch.equal(module.weight, before)
    assert not torch.equal(module.bias, bias)


def test_a_group_that_is_added_later_is_trained():
    module, inputs = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), problem()[0]
    engine = engine_of(module, optimizer=PolyStep(module[1].parameters(), seed=0, rank=4))
    before = digest(module[0])
    engine.step(lambda: module(inputs).square().mean())
    assert digest(module[0]) == before
    engine.optimizer.add_param_group({"params": list(module[0].parameters())})
    engine.step(lambda: module(inputs).square().mean())
    assert digest(module[0]) != before


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.LazyLinear(2)), "is lazy"),
        (nn.Linear(2, 2).requires_grad_(False), "no trainable parameter"),
        (nn.Linear(2, 2, dtype=torch.complex64), "is complex"),
        (nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)]), "holds integers"),
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
    assert "vmap (shift)" in err


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


def test_nested_verbs_are_charged_to_the_inner_one(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = VerbClock()
    with clock("observe"), clock("score"):
        pass
    assert clock.seconds == {**dict.fromkeys(VERBS, 0.0), "observe": 1.0 + 5.0, "score": 3.0}
