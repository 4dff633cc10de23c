"""PolyStep is an optimizer of torch: groups, schedulers and state work as for any other."""

import copy
import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lightning_polystep.engine import Engine
from lightning_polystep.hosted import Pending
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.schedules import Cosine, Linear
from lightning_polystep.step import transport
from lightning_polystep.transport import KLRelaxed, Sample, Sinkhorn, Softmax, Transport, Weights


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


class Task:
    """A small classification task, its network and its engine."""

    def __init__(self, seed=0, network_seed=0, max_candidates=None, **options):
        draw = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(96, 5, generator=draw)
        self.targets = (self.inputs @ torch.randn(5, 3, generator=draw)).argmax(1)
        torch.manual_seed(network_seed)
        self.network = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))
        rank = 4 if max_candidates is None else None  # with a budget, each step probes other rows
        self.optimizer = PolyStep(self.network.parameters(), seed=seed, **{"rank": rank, **options})
        self.engine = Engine(self.network, self.optimizer, max_candidates=max_candidates, announce=None)

    def loss(self):
        return nn.functional.cross_entropy(self.network(self.inputs), self.targets)

    def run(self, steps):
        return [float(self.engine.step(self.loss)) for _ in range(steps)]


def quadratic(**options):
    """One vector whose cost is its squared distance from ones; two coordinates per particle."""
    vector = nn.Parameter(torch.zeros(4))
    module = nn.ParameterList([vector])
    optimizer = PolyStep(module.parameters(), seed=0, **{"subspace": "full", "momentum": 0.0, **options})
    return vector, optimizer, Engine(module, optimizer, announce=None), lambda: (module[0] - 1).square().sum()


# The update.


def scripted(lr=0.5, momentum=0.25, rows=(0, 2), **options):
    """A block whose directions and costs are given, so that the update can be worked out on paper."""
    weight, options = nn.Parameter(torch.zeros(3, 2)), {"cost_memory": 0.0, **options}
    optimizer = PolyStep([weight], lr=lr, momentum=momentum, subspace="gaussian", epsilon=1.0, **options)
    optimizer.binding.attached = True
    (group,) = optimizer.param_groups
    block = Block("w", (weight,), ("w",), group, 3, 2, "gaussian")
    directions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    proposal = Proposal(block, torch.tensor(rows), torch.ones(len(rows)), directions, 2, 0.3)
    return weight, optimizer, proposal


def barycentres(costs, rows):
    """sqrt(2) times the weighted mean of the four vertices, for each row."""
    weights = transport(
        costs.reshape(rows, 1, 4), {"epsilon": 1.0, "transport": "softmax"}, seed=0, step=0, name="w"
    ).weights
    right, up, left, down = weights[:, 0].T
    return 2**0.5 * torch.stack([right - left, up - down], dim=1)


def test_momentum_is_that_of_the_equation_over_two_steps():
    weight, optimizer, proposal = scripted()
    costs = [torch.randn(8, dtype=torch.float64) for _ in range(2)]
    memory, expected = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for cost in costs:
        optimizer.binding.pending = Pending([proposal], [2.0 * cost], weight=2.0)
        optimizer.step()
        memory[[0, 2]] = 0.25 * memory[[0, 2]] + 0.75 * barycentres(cost, rows=2)
        expected += 0.5 * memory
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"].double(), memory, rtol=1e-5, atol=1e-6)
    assert weight[1].tolist() == [0.0, 0.0]
    assert float(optimizer.binding.report["step_norm"]) == pytest.approx(0.5 * float(memory.norm()), rel=1e-5)


def test_weight_decay_takes_a_share_of_the_probed_rows_and_leaves_momentum_alone():
    weights, memories = [], []
    for decay in (0.0, 0.3):
        weight, optimizer, proposal = scripted(weight_decay=decay)
        with torch.no_grad():
            weight.copy_(torch.arange(6.0).reshape(3, 2))
        optimizer.binding.pending = Pending([proposal], [torch.arange(8.0, dtype=torch.float64)], weight=1.0)
        optimizer.step()
        weights.append(weight.detach())
        memories.append(optimizer.state[weight]["momentum_buffer"])
    assert torch.equal(*memories)
    taken = 0.5 * 0.3 * torch.tensor([[0.0, 1.0], [0.0, 0.0], [4.0, 5.0]])
    torch.testing.assert_close(weights[0] - weights[1], taken)


def test_a_row_that_is_not_probed_keeps_its_momentum_and_its_place():
    weight, optimizer, proposal = scripted(rows=(0, 1, 2))
    optimizer.binding.pending = Pending([proposal], [torch.randn(12, dtype=torch.float64)], weight=1.0)
    optimizer.step()
    place, memory = weight[1].tolist(), optimizer.state[weight]["momentum_buffer"][1].tolist()
    proposal.rows, proposal.reach = torch.tensor([0, 2]), torch.ones(2)
    optimizer.binding.pending = Pending([proposal], [torch.randn(8, dtype=torch.float64)], weight=1.0)
    optimizer.step()
    assert weight[1].tolist() == place
    assert optimizer.state[weight]["momentum_buffer"][1].tolist() == memory != [0.0, 0.0]


def test_maximize_is_descent_on_the_negated_loss():
    moved = []
    for maximize, sign in [(True, 1.0), (False, -1.0)]:
        weight, optimizer, proposal = scripted(maximize=maximize)
        costs = sign * torch.arange(8, dtype=torch.float64).square()
        optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
        optimizer.step()
        moved.append(weight.detach().clone())
    assert torch.equal(*moved)
    assert moved[0][0, 1] < 0, "up costs least, so climbing goes down"


def test_rows_without_a_signal_reach_farther_and_move_as_far():
    weight, optimizer, proposal = scripted(rows=(0, 1, 2), momentum=0.0)
    signal = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    flat = torch.zeros(4, dtype=torch.float64)
    optimizer.binding.pending = Pending([proposal], [torch.cat([signal, flat, signal])], weight=1.0)
    optimizer.step()
    assert optimizer.reach(proposal.block).tolist() == [1.0, 2.0, 1.0]
    assert weight[1].abs().max() < 1e-6
    assert float(optimizer.binding.report["flat_rows"]) == pytest.approx(1 / 3)
    proposal.reach = optimizer.reach(proposal.block)
    before = weight.detach().clone()
    optimizer.binding.pending = Pending([proposal], [signal.repeat(3)], weight=1.0)
    optimizer.step()
    moved = (weight.detach() - before).norm(dim=1)
    assert float(moved[1] / moved[0]) == pytest.approx(2.0, rel=1e-4)
    assert optimizer.reach(proposal.block).tolist() == [1.0, 1.0, 1.0]


def length_of_last_move(first, last, **options):
    """Return how far rows move by costs, after many steps by others."""
    weight, optimizer, proposal = scripted(momentum=0.0, **options)
    for costs in (*[first] * 30, last):
        before = weight.detach().clone()
        optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
        optimizer.step()
    return (weight.detach() - before).norm(dim=1)


def test_rows_move_less_by_costs_that_differ_less_than_usual():
    """A batch most of whose samples are learnt says little, and what it says is chance."""
    signal = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    usual = torch.cat([signal, signal])
    quiet = torch.cat([signal, 0.1 * signal])
    moved = length_of_last_move(usual, quiet, cost_memory=0.9)
    assert 0.1 < float(moved[2] / moved[0]) < 0.2
    loud = length_of_last_move(usual, torch.cat([signal, 10 * signal]), cost_memory=0.9)
    assert float(loud[2]) == pytest.approx(float(loud[0]), rel=1e-5)
    as_before = length_of_last_move(usual, quiet, cost_memory=0.0)
    assert float(as_before[2]) == pytest.approx(float(as_before[0]), rel=1e-5)


@pytest.mark.parametrize("estimated", [True, False])
def test_unless_asked_for_only_estimated_costs_have_a_memory(estimated):
    weight, optimizer, proposal = scripted(momentum=0.0, cost_memory=None)
    proposal.block.estimated = estimated
    signal = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64).repeat(2)
    for costs in (*[signal] * 30, 0.1 * signal):
        before = weight.detach().clone()
        optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
        optimizer.step()
    moved = float((weight.detach() - before)[0].norm())
    assert (moved < 0.1) == estimated
    assert ("spread" in optimizer.state[weight]) == estimated


def test_what_is_usual_is_forgotten_in_time():
    weight, optimizer, proposal = scripted(momentum=0.0, cost_memory=0.5)
    signal = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64).repeat(2)
    lengths = []
    for costs in (*[signal] * 20, *[0.1 * signal] * 20):
        before = weight.detach().clone()
        optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
        optimizer.step()
        lengths.append(float((weight.detach() - before)[0].norm()))
    assert lengths[20] < 0.3 * lengths[0]
    assert lengths[20:] == sorted(lengths[20:])
    assert lengths[-1] == pytest.approx(lengths[0], rel=0.02)


def test_two_micro_batches_cost_their_mean():
    """The gathered step equals the step on the concatenated batch, for a loss that is a mean over samples."""
    inputs, targets = torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64)
    networks = [nn.Linear(4, 2).double() for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())

    def parts(network, cuts):
        optimizer = PolyStep(network.parameters(), seed=0, rank=5, subspace="gaussian")
        engine = Engine(network, optimizer, announce=None)
        for weight, cut in cuts:

            def evaluate(cut=cut):
                return (network(inputs[cut]) - targets[cut]).square().mean()

            with engine.observing():
                loss = evaluate()
            engine.probe(evaluate, loss, samples=len(inputs[cut]), weight=weight)
        optimizer.step()
        return optimizer

    whole = parts(networks[0], [(1.0, slice(0, 32))])
    halves = parts(networks[1], [(1.0, slice(0, 16)), (1.0, slice(16, 32))])
    parts(networks[2], [(8.0, slice(0, 8)), (24.0, slice(8, 32))])
    for network in networks[1:]:
        torch.testing.assert_close(network.weight, networks[0].weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(network.bias, networks[0].bias, rtol=1e-9, atol=1e-12)
    for name, expected in whole.binding.report.items():
        torch.testing.assert_close(halves.binding.report[name], expected)
    assert halves.progress.step == whole.progress.step == 1
    assert halves.progress.candidates == 2 * whole.progress.candidates
    assert halves.progress.samples == whole.progress.samples == 2 * 10 * 32


# Progress on a loss.


@pytest.mark.parametrize("polytope", ["orthoplex", "simplex", "cube"])
@pytest.mark.parametrize("subspace", ["full", "gaussian"])
def test_a_quadratic_is_descended(polytope, subspace):
    vector, _, engine, loss = quadratic(polytope=polytope, subspace=subspace, lr=0.1)
    losses = [float(engine.step(loss)) for _ in range(60)]
    assert losses[0] == 4.0
    assert min(losses) < 0.2
    assert vector.grad is None


def test_maximize_climbs():
    _, _, engine, loss = quadratic(maximize=True, lr=0.1)
    values = [float(engine.step(lambda: -loss())) for _ in range(60)]
    assert values[0] == -4.0
    assert max(values) > -0.2


@pytest.mark.parametrize("options", [{}, {"polytope": "simplex", "particle_dim": 2}, {"subspace": "gaussian"}])
def test_a_classification_problem_is_learnt(options):
    losses = Task(**options).run(25)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_groups_have_radii_of_their_own():
    task = Task()
    first, last = task.network[0], task.network[4]
    optimizer = PolyStep(
        [{"params": first.parameters(), "lr": 0.0}, {"params": last.parameters(), "probe_radius": 0.1}], lr=0.2, seed=0
    )
    engine = Engine(task.network, optimizer, announce=None)
    before = [p.detach().clone() for p in (first.weight, first.bias, last.weight, last.bias)]
    engine.step(task.loss)
    assert torch.equal(first.weight, before[0])
    assert torch.equal(first.bias, before[1])
    assert not torch.equal(last.weight, before[2])
    assert not torch.equal(last.bias, before[3])


def test_the_radius_scales_the_move():
    moves = []
    for lr in (0.1, 0.2):
        task = Task(lr=lr)
        before = task.network[0].weight.detach().clone()
        task.run(1)
        moves.append(task.network[0].weight.detach() - before)
    torch.testing.assert_close(2 * moves[0], moves[1], rtol=1e-4, atol=1e-6)


# Transports.


def softmax_of_before(costs, epsilon):
    """The softmax as it was when a transport was a function of the costs and the temperature."""
    weights = torch.softmax(-costs / epsilon, dim=-1)
    return torch.where(torch.isfinite(costs).any(dim=-1, keepdim=True), weights, 1.0 / costs.shape[-1])


@dataclass(frozen=True)
class Before(Transport):
    name: ClassVar[str] = "before"

    def weigh(self, costs, epsilon, draw=None):
        assert draw is None
        return Weights(softmax_of_before(costs, epsilon), costs.new_zeros(()))


@pytest.mark.parametrize("options", [{}, {"polytope": "simplex", "particle_dim": 2, "epsilon": 0.7}])
def test_the_name_the_object_and_the_function_of_before_move_alike_to_the_bit(options):
    hashes = []
    for choice in (None, "softmax", Softmax(), Before(), KLRelaxed(tau=0.0)):
        task = Task(**options, **({} if choice is None else {"transport": choice}))
        task.run(4)
        hashes.append(digest(task.network))
    assert len(set(hashes)) == 1


@pytest.mark.parametrize("choice", ["sinkhorn", "kl", "sample", Sinkhorn(), KLRelaxed(tau=0.2), Sample()])
def test_every_transport_learns_and_again_the_same(choice):
    runs = []
    for _ in range(2):
        task = Task(transport=choice, lr=0.05 if choice in ("sample", Sample()) else 0.1)
        losses = task.run(20)
        runs.append((losses, digest(task.network)))
        assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert runs[0] == runs[1]


def test_what_is_drawn_depends_on_the_seed():
    """On a proposal that is given, so that nothing else does."""
    moved = []
    for seed in (0, 0, 1):
        weight, optimizer, proposal = scripted(rows=(0, 1, 2), transport="sample", seed=seed)
        optimizer.binding.pending = Pending([proposal], [torch.zeros(12, dtype=torch.float64)], weight=1.0)
        optimizer.step()
        moved.append(weight.detach().clone())
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    assert torch.allclose(moved[0].norm(dim=1), torch.tensor(0.5 * 0.75 * 2**0.5)), "each to one vertex"


def test_groups_have_transports_and_temperatures_of_their_own():
    weights, options = [], [{"transport": Sinkhorn()}, {"transport": "softmax", "epsilon": 0.1}, {}]
    costs = torch.randn(8, dtype=torch.float64)
    for chosen in options:
        weight, optimizer, proposal = scripted()
        proposal.block.group.update(chosen)
        optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
        optimizer.step()
        weights.append(weight.detach().clone())
        error = float(optimizer.binding.report["marginal_error"])
        assert error < 1e-5
    assert weights[0].sum(0).abs().max() < 1e-6, "the moves of all rows sum to zero"
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 3
    first, last = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = PolyStep([{"params": [first], "transport": "kl"}, {"params": [last]}], epsilon=Linear(2.0, 1.0, 10))
    assert [group["transport"] for group in optimizer.param_groups] == ["kl", "softmax"]
    assert [group["epsilon"] for group in optimizer.param_groups] == [Linear(2.0, 1.0, 10)] * 2


def test_a_temperature_that_follows_a_schedule_is_the_one_of_the_step():
    costs = torch.randn(8, dtype=torch.float64)
    for step, epsilon in [(0, 2.0), (1, 1.5), (2, 1.0), (3, 1.0)]:
        moved = []
        for temperature in (epsilon, Linear(2.0, 1.0, steps=2)):
            weight, optimizer, proposal = scripted()
            proposal.block.group["epsilon"] = temperature
            optimizer.progress.step = step
            optimizer.binding.pending = Pending([proposal], [costs], weight=1.0)
            optimizer.step()
            moved.append(weight.detach().clone())
        assert torch.equal(*moved)


def test_the_worst_marginal_error_of_the_blocks_is_reported_and_warned_of_once():
    _, optimizer, proposal = scripted(rows=(0, 1, 2))
    proposal.block.group["transport"] = Sinkhorn(iterations=1)
    costs = [torch.randn(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)]
    optimizer.binding.pending = Pending([proposal, proposal], costs, weight=1.0)
    with pytest.warns(UserWarning, match=r"Sinkhorn\(.*iterations=1\) did not reach its tolerance for w, in as many"):
        optimizer.step()
    known = {"seed": 0, "step": 0, "name": "w"}
    (alone, flat) = (transport(c.reshape(3, 1, 4), proposal.block.group, **known).marginal_error for c in costs)
    assert float(optimizer.binding.report["marginal_error"]) == float(alone) > float(flat)
    optimizer.binding.pending = Pending([proposal], costs[:1], weight=1.0)
    optimizer.step()


def test_blocks_of_one_row_are_named_once_where_their_transport_would_not_move_them():
    weight, optimizer, proposal = scripted(rows=(1,), transport=Sinkhorn())
    optimizer.binding.pending = Pending([proposal], [torch.arange(4.0, dtype=torch.float64)], weight=1.0)
    with pytest.warns(UserWarning, match=r"Sinkhorn\(.*\) weighs w by a softmax, because a step probes fewer than 2"):
        optimizer.step()
    assert weight[1].abs().max() > 0
    optimizer.binding.pending = Pending([proposal], [torch.arange(4.0, dtype=torch.float64)], weight=1.0)
    optimizer.step()


# Schedulers.

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=6, cycle_momentum=False),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.7**epoch),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_step_radius(name):
    """As they set the learning rate of SGD; and the radius that moves is the scheduled one."""
    vector, optimizer, engine, loss = quadratic(lr=0.1)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedulers = [SCHEDULERS[name](o) for o in (optimizer, sgd)]
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(sgd.param_groups[0]["lr"])
        before = vector.detach().clone()
        engine.step(loss)
        sgd.step()
        displacement = optimizer.state[vector]["momentum_buffer"]  # without memory: this step's own
        torch.testing.assert_close(vector.detach() - before, rates[-1] * displacement)
        for scheduler in schedulers:
            scheduler.step()
    assert len(set(rates)) > 1


def test_a_plateau_lowers_the_radius():
    _, optimizer, engine, loss = quadratic(lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for value in (1.0, 2.0, 3.0):
        engine.step(loss)
        scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_hooks_of_torch_are_called():
    _, optimizer, engine, loss = quadratic()
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    engine.step(loss)
    assert called == ["before", "after"]


# Construction.


def test_values_are_checked_in_the_constructor_and_in_groups():
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"PolyStep\(lr=-1\)"):
        PolyStep([parameter], lr=-1)
    with pytest.raises(ValueError, match="choose from inputs, gaussian, full"):
        PolyStep([parameter], subspace="hessian")
    with pytest.raises(ValueError, match="candidates need a radius above 0"):
        PolyStep([{"params": [parameter], "probe_radius": 0.0}])
    optimizer = PolyStep([parameter])
    with pytest.raises(ValueError, match="at least one direction"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rank": 0})
    assert len(optimizer.param_groups) == 1


def test_without_a_seed_that_of_torch_is_taken():
    torch.manual_seed(77)
    assert PolyStep([nn.Parameter(torch.zeros(1))]).seed == 77


def test_a_step_that_nothing_scored_is_refused():
    optimizer = PolyStep([nn.Parameter(torch.zeros(1))])
    with pytest.raises(RuntimeError, match=r"nothing scores them.*Engine\(model, optimizer\)\.step\(closure\)"):
        optimizer.step()
    assert optimizer.progress.step == 0


def test_a_closure_is_called_first_and_its_result_returned():
    weight, optimizer, proposal = scripted()

    def closure():
        optimizer.binding.pending = Pending([proposal], [torch.arange(8, dtype=torch.float64)], weight=1.0)
        assert not torch.is_grad_enabled()
        return "loss"

    assert optimizer.step(closure) == "loss"
    assert weight.abs().max() > 0


def test_zero_grad_drops_what_was_gathered():
    weight, optimizer, proposal = scripted()
    optimizer.binding.pending = Pending([proposal], [torch.arange(8, dtype=torch.float64)], weight=1.0)
    optimizer.progress.micro_batch = 1
    optimizer.zero_grad()
    optimizer.step()
    assert weight.abs().max() == 0
    assert (optimizer.progress.step, optimizer.progress.micro_batch) == (1, 0)


# State.


def save_and_load(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(task, **options):
    """A new task that goes on where another one is, through a file."""
    other = Task(seed=999, network_seed=5, **options)
    other.network.load_state_dict(save_and_load(task.network.state_dict()))
    other.optimizer.load_state_dict(save_and_load(task.optimizer.state_dict()))
    return other


@pytest.mark.parametrize(
    ("cut", "options"),
    [(1, {}), (4, {}), (12, {}), (4, {"polytope": "simplex", "subspace": "gaussian"}), (4, {"max_candidates": 40})],
)
def test_stop_and_resume_change_not_one_bit(cut, options):
    """Over the first refresh of the eigenbasis on schedule too, after ten steps and before the next."""
    whole, first = Task(**options), Task(**options)
    losses = whole.run(cut + 6)
    before = first.run(cut)
    second = resumed(first, **options)
    assert before + second.run(6) == losses
    assert digest(second.network) == digest(whole.network)
    assert vars(second.optimizer.progress) == vars(whole.optimizer.progress)


@pytest.mark.parametrize(
    ("transport", "epsilon"),
    [
        ("sample", 2.0),
        (Sample(), Cosine(2.0, 0.5, steps=8)),
        (Sinkhorn(tolerance=1e-3), Linear(2.0, 1.0, steps=6)),
        (KLRelaxed(tau=0.7), 1.5),
        (Before(), 2.0),
    ],
    ids=str,
)
def test_transports_and_schedules_are_resumed_to_the_bit(transport, epsilon):
    """The state has the settings, which replace those of the optimizer that loads it, and the step, which is all."""
    options = {"transport": transport, "epsilon": epsilon, "lr": 0.05}
    whole, first = Task(**options), Task(**options)
    losses = whole.run(7)
    before = first.run(3)
    others = {"transport": transport} if isinstance(transport, Before) else {}
    second = resumed(first, **others)
    assert before + second.run(4) == losses
    assert digest(second.network) == digest(whole.network)
    (group,) = second.optimizer.param_groups
    assert (group["transport"], group["epsilon"]) == (transport, epsilon)


def test_a_state_of_before_loads_and_a_state_of_a_softmax_is_as_it_was():
    """The names of hyper-parameters have not changed, nor what they are for a softmax."""
    task = Task(transport="softmax", epsilon=2.0)
    task.run(2)
    state = save_and_load(task.optimizer.state_dict())
    (group,) = state["param_groups"]
    assert (group["transport"], group["epsilon"]) == ("softmax", 2.0)
    other = Task(transport=Sinkhorn(), epsilon=Linear(2.0, 1.0, 5))
    other.network.load_state_dict(task.network.state_dict())
    other.optimizer.load_state_dict(state)
    assert other.optimizer.param_groups[0]["transport"] == "softmax"
    assert other.run(2) == task.run(2)


def test_a_state_of_an_unknown_transport_is_refused_and_changes_nothing():
    task = Task(transport=Sinkhorn())
    task.run(1)
    state = task.optimizer.state_dict()
    state["param_groups"][0]["transport"] = {"name": "os.system", "command": "true"}
    before = digest(task.network), repr(task.optimizer.state_dict())
    with pytest.raises(ValueError, match=r"transport is 'os\.system', which is none of softmax"):
        task.optimizer.load_state_dict(state)
    assert (digest(task.network), repr(task.optimizer.state_dict())) == before


@pytest.mark.parametrize("groups", [1, 3])
def test_a_state_of_more_or_fewer_groups_is_for_torch_to_refuse(groups):
    def make(count):
        return PolyStep([{"params": [nn.Parameter(torch.zeros(1))], "transport": Sinkhorn()} for _ in range(count)])

    with pytest.raises(ValueError, match="different number of parameter groups"):
        make(2).load_state_dict(make(groups).state_dict())


def test_the_state_of_a_scheduler_goes_on_in_an_engine_that_has_already_run():
    """Loading replaces the dicts of the groups in torch; blocks must not keep the old ones."""
    task = Task(lr=0.1)
    task.run(3)
    saved = save_and_load(task.optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.0
    task.optimizer.load_state_dict(saved)
    before = digest(task.network)
    task.run(1)
    assert task.optimizer.param_groups[0]["lr"] == 0.0
    assert digest(task.network) == before
    lr_scheduler.LambdaLR(task.optimizer, lambda _epoch: 1.0)
    task.optimizer.param_groups[0]["lr"] = 0.1
    task.run(1)
    assert digest(task.network) != before


def test_the_state_is_a_snapshot():
    task = Task()
    task.run(3)
    state = task.optimizer.state_dict()
    own = {name: value for name, value in state["polystep"].items() if name != "statistics"}
    text = repr(own), repr(state["polystep"]["statistics"])
    task.run(3)
    assert (repr(own), repr(state["polystep"]["statistics"])) == text


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**64 - 1])
def test_any_seed_of_torch_is_saved(seed):
    optimizer = PolyStep([nn.Parameter(torch.zeros(1))], seed=seed)
    other = PolyStep([nn.Parameter(torch.zeros(1))], seed=1)
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    assert other.seed == seed


def test_loading_drops_what_was_gathered():
    weight, optimizer, proposal = scripted()
    optimizer.binding.pending = Pending([proposal], [torch.arange(8, dtype=torch.float64)], weight=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="no batch of the step that came after it could be scored"):
        optimizer.step()
    assert weight.abs().max() == 0


def test_the_state_of_adam_is_refused_and_changes_nothing():
    task = Task()
    task.run(1)
    before = digest(task.network), repr(task.optimizer.state_dict())
    adam = torch.optim.Adam(task.network.parameters())
    with pytest.raises(ValueError, match="state of another optimizer: load only the weights"):
        task.optimizer.load_state_dict(adam.state_dict())
    assert (digest(task.network), repr(task.optimizer.state_dict())) == before


def test_copies_keep_the_state_but_not_the_binding():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = PolyStep([parameter], seed=7, importance_sampling=0.25, transport=Sinkhorn(tolerance=0.1))
    Engine(nn.ParameterList([parameter]), optimizer, announce=None)
    optimizer.progress.step = 5
    copied = copy.deepcopy(optimizer)
    assert (copied.seed, copied.progress.step, copied.binding.attached) == (7, 5, False)
    assert copied.importance_sampling == 0.25
    assert copied.param_groups[0]["transport"] == Sinkhorn(tolerance=0.1)
    with pytest.raises(RuntimeError, match="nothing scores them"):
        copied.step()


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("scale", [0.0, 1e-20], ids=["constant", "tiny"])
def test_a_loss_that_no_candidate_changes_is_told_once(scale, evaluation):
    network, x = nn.Linear(3, 2), torch.randn(8, 3)
    engine = Engine(network, PolyStep(network.parameters()), evaluation=evaluation, max_candidates=12, announce=None)
    with warnings.catch_warnings(record=True, action="always") as caught:
        for _ in range(12):
            engine.step(lambda: network(x).square().mean() * scale)
    assert [str(each.message)[:48] for each in caught] == ["No candidate of the first 8 steps has changed th"]


def test_a_loss_that_candidates_change_later_is_not_told():
    network, x = nn.Linear(3, 2), torch.randn(8, 3)
    engine = Engine(network, PolyStep(network.parameters()), max_candidates=12, announce=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(12):
            engine.step(lambda step=step: network(x).square().mean() * float(step == 5))
