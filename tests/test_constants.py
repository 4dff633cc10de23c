"""Constants of neurons stay where their layer clamps them, have a scale of their own, and cost weights nothing."""

import math

import pytest
import snntorch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.constants import Constant, constant_of
from lightning_polystep.layers import LIF, RLIF, SpikeCount, Synaptic
from lightning_polystep.step import held_back, propose

LEAK, FREE = (0.0, 1.0), (-math.inf, math.inf)


def constants(module, **options):
    blocks = find_blocks(module, PolyStep(module.parameters(), **options).param_groups)
    return {block.name: block for block in blocks if block.constant}


class Norselike(nn.Module):
    """Neurons of nobody's library."""

    def __init__(self):
        super().__init__()
        self.tau_mem_inv, self.v_th = nn.Parameter(torch.full((4,), 200.0)), nn.Parameter(torch.full((4, 1, 1), 0.02))
        self.decay, self.beta = nn.Parameter(torch.full((4,), 0.9)), nn.Parameter(torch.tensor(1.5))
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.gamma = nn.Parameter(torch.ones(4))


def test_neurons_of_this_package_and_of_snntorch():
    learn = {"learn_beta": True, "learn_threshold": True}
    module = nn.ModuleDict(
        {
            "lif": LIF(torch.full((3,), 0.9), 2.0, **learn),
            "synaptic": Synaptic(0.8, 0.9, learn_alpha=True, **learn),
            "rlif": RLIF(3, **learn),
            "leaky": snntorch.Leaky(torch.full((3,), 0.9), threshold=torch.full((3,), 0.5), **learn),
            "second": snntorch.Synaptic(alpha=0.9, beta=0.8, learn_alpha=True, **learn),
        }
    )
    found = constants(module)
    assert set(found) == {name for name, _ in module.named_parameters() if "recurrent" not in name}
    for name, block in found.items():
        if name.endswith(("beta", "alpha")):
            assert (block.scale, block.bounds) == (0.1, LEAK)
    assert [found[f"{name}.threshold"].scale for name in ("lif", "leaky")] == pytest.approx([0.6, 0.15])
    assert all(block.rows == 1 and block.subspace == "full" for block in found.values())


def test_parameters_count_by_their_names_and_their_sizes():
    found = {name: (block.scale, block.bounds) for name, block in constants(Norselike()).items()}
    assert set(found) == {"tau_mem_inv", "v_th", "decay", "beta"}
    assert found["decay"] == (0.1, LEAK)
    assert found["beta"] == (0.1, (0.0, math.inf))  # whoever starts above 1 means no share
    assert found["tau_mem_inv"] == (pytest.approx(20.0), (0.0, math.inf))
    assert found["v_th"] == (pytest.approx(0.006), (0.0, math.inf))


def test_what_is_no_constant_of_neurons():
    module = nn.ModuleList([nn.LayerNorm(3), nn.BatchNorm1d(3), nn.PReLU(3), nn.Linear(3, 3), nn.Embedding(3, 3)])
    assert constants(module) == {}
    norm = nn.LayerNorm(3)
    assert constant_of(norm, "weight", norm.weight) is None


def test_a_leak_that_a_known_layer_clamps_is_bounded_wherever_it_starts():
    neuron = snntorch.Leaky(torch.tensor([1.2, 0.5]), learn_beta=True)
    assert constant_of(neuron, "beta", neuron.beta) == Constant(0.1, 0.0, 1.0)


def test_foreign_neurons():
    jelly = pytest.importorskip("spikingjelly.activation_based.neuron")
    found = constants(nn.Sequential(nn.Linear(2, 2), jelly.ParametricLIFNode()))
    assert {name: block.bounds for name, block in found.items()} == {"1.w": FREE}


@pytest.mark.parametrize("subspace", ["inputs", "full"])
def test_no_candidate_and_no_step_leaves_the_bounds(subspace):
    layer = LIF(torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0]), learn_beta=True)
    (block,) = constants(layer, subspace=subspace).values()
    proposal = propose(block, None, seed=0, step=0, rank=5)
    rows, moved = proposal.displacements(0, proposal.candidates)
    values = block.join([layer.beta.detach()])[rows] + moved
    assert float(values.min()) >= 0
    assert float(values.max()) <= 1
    assert bool((moved[:, :].abs() > 0).any(1).float().mean() > 0.5)


def stepped(module, loss, steps=25, **options):
    optimizer = PolyStep(module.parameters(), seed=0, **options)
    engine = Engine(module, optimizer, announce=None)
    for _ in range(steps):
        engine.step(lambda: loss(module))
    return engine


class Clamped(nn.Module):
    """Clamps as it likes, and does not say so."""

    def __init__(self, value, low, high):
        super().__init__()
        self.tau, self.low, self.high = nn.Parameter(torch.tensor(value)), low, high


@pytest.mark.filterwarnings("ignore:No candidate of the first 8 steps")
@pytest.mark.parametrize(
    ("low", "high", "value", "sign"), [(0.5, 2.0, 1.9, -1), (0.5, 2.0, 0.6, 1), (0.5, 2.0, 2.5, 0)]
)
def test_a_clamp_that_nobody_knows_is_not_run_through(low, high, value, sign):
    module = Clamped(value, low, high)
    engine = stepped(module, lambda m: sign * m.tau.clamp(m.low, m.high), steps=60, lr=0.3)
    end = float(module.tau.detach())
    assert low - 0.2 <= end <= high + 0.55
    if sign:
        assert abs(end - (high if sign < 0 else low)) < 0.2
    block = engine.plan.assignments[0].block
    assert float(engine.optimizer.reach(block).max()) == 1.0


def test_a_constant_moves_away_from_what_changes_nothing_if_that_is_better():
    module = Clamped(1.99, 0.5, 2.0)
    stepped(module, lambda m: m.tau.clamp(m.low, m.high), steps=30, lr=0.3)
    assert float(module.tau.detach()) < 1.5


def test_held_back_leaves_vectors_alone():
    (block,) = constants(LIF(torch.full((3,), 0.5), learn_beta=True)).values()
    proposal = propose(block, None, seed=0, step=0, rank=3)
    displacement = torch.ones(1, 3)
    assert torch.equal(held_back(displacement, proposal, torch.zeros(1, 1, 6), torch.tensor(0.0)), displacement)


@pytest.mark.filterwarnings("ignore:Nothing trains what lies before a silent layer")
@pytest.mark.filterwarnings("ignore:No candidate of the first 8 steps")
def test_constants_of_silent_neurons_are_not_probed_wider():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, 3), LIF(torch.full((3,), 0.9), 50.0, num_steps=5, learn_beta=True), SpikeCount()
    )
    x = torch.rand(16, 4)
    engine = stepped(network, lambda n: n(x).square().mean(), steps=8)
    for assignment in engine.plan.assignments:
        if assignment.block.constant:
            assert float(engine.optimizer.reach(assignment.block).max()) == 1.0


class Digits(nn.Module):
    """The network of a tutorial."""

    def __init__(self, learn):
        super().__init__()
        options = {"learn_beta": learn, "learn_threshold": learn, "init_hidden": True}
        self.fc1, self.lif1 = (
            nn.Linear(64, 16),
            snntorch.Leaky(torch.full((16,), 0.9), threshold=torch.ones(16), **options),
        )
        self.fc2, self.lif2 = (
            nn.Linear(16, 10),
            snntorch.Leaky(torch.full((10,), 0.9), threshold=torch.ones(10), **options),
        )

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        return sum(self.lif2(self.fc2(self.lif1(self.fc1(x)))) for _ in range(8))


def learnt(learn, max_candidates=512, steps=50):
    torch.manual_seed(0)
    data, network = load_digits(), Digits(learn)
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    optimizer = PolyStep(network.parameters(), seed=0)
    engine, draw = Engine(network, optimizer, announce=None, max_candidates=max_candidates), torch.Generator()
    for _ in range(steps):
        chosen = torch.randint(1300, (256,), generator=draw)
        engine.step(lambda chosen=chosen: functional.cross_entropy(network(x[chosen]), y[chosen]))
    with torch.no_grad():
        return network, engine, float((network(x[1300:]).argmax(1) == y[1300:]).float().mean())


def test_learning_them_is_not_worse_than_keeping_them():
    (_, fixed_engine, fixed), (network, engine, both) = learnt(False), learnt(True)
    assert both > fixed - 0.05
    for name, parameter in network.named_parameters():
        if name.endswith("beta"):
            assert float(parameter.detach().min()) >= 0
            assert float(parameter.detach().max()) <= 1
        if name.endswith("threshold"):
            assert float(parameter.detach().min()) > 0.5
            assert float(parameter.detach().max()) < 2
    # What they are probed by comes on top: weights are probed as much as without.
    probed = [{a.block.name: (a.rank, a.most_rows) for a in each.plan.assignments} for each in (fixed_engine, engine)]
    assert probed[0].items() <= probed[1].items()
