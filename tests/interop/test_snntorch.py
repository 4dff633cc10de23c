"""Unmodified snnTorch networks: they train from the tape, and their state is what the commit passes made of it."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_polystep import Engine, PolyStep
from lightning_polystep.interop.snntorch import SnnTorchAdapter
from tests.helpers.ecosystem import (
    FEATURES,
    Recorded,
    Task,
    assert_same_state,
    batches,
    digest,
    engine_of,
    fit,
    state,
    tiers,
)

snn = pytest.importorskip("snntorch", reason="snntorch is not installed (extra snntorch)")
surrogate = pytest.importorskip("snntorch.surrogate")
utils = pytest.importorskip("snntorch.utils")
quantise_state = pytest.importorskip("snntorch.functional.quant").state_quant

STEPS = 6
TAPE, LOOP = "tape", "loop"


class Tutorial(nn.Module):
    """As in snnTorch's tutorial 5: two layers, membranes reset before the loop, spikes and membranes recorded."""

    def __init__(self, **options):
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, 10)
        self.lif1 = snn.Leaky(beta=0.9, **options)
        self.fc2 = nn.Linear(10, 3)
        self.lif2 = snn.Leaky(beta=0.9, **options)

    def forward(self, x):
        mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        spk2_rec, mem2_rec = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


def sequential(**options):
    options = {"beta": 0.8, "init_hidden": True, **options}
    return nn.Sequential(
        nn.Linear(FEATURES, 10), snn.Leaky(**options), nn.Linear(10, 3), snn.Leaky(output=True, **options)
    )


def membrane_loss(net, x, y):
    _, membranes = net(x)
    return sum(cross_entropy(membrane, y) for membrane in membranes) / STEPS


def after_reset(net, x, y):
    utils.reset(net)
    return carried(net, x, y)


def carried(net, x, y):
    return cross_entropy(torch.stack([net(x)[1] for _ in range(STEPS)]).sum(0), y)


USES = {"class": (Tutorial, membrane_loss), "reset": (sequential, after_reset), "carried": (sequential, carried)}


@pytest.mark.parametrize("use", USES)
def test_it_trains_from_the_tape_and_twice_the_same(tmp_path, use):
    runs = []
    for _ in range(2):
        module = Task(*USES[use])
        with pytest.warns(UserWarning, match="Adam"):
            engine = fit(tmp_path, module)
        first, last = ("net.fc1", "net.fc2") if use == "class" else ("net.0", "net.2")
        assert tiers(engine) == {first: "units", last: TAPE}
        runs.append((digest(module), module.losses))
    losses = runs[0][1]
    assert torch.stack(losses[-4:]).mean() < 0.8 * torch.stack(losses[:2]).mean()
    assert runs[0][0] == runs[1][0]


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("use", USES)
def test_probes_leave_the_state_of_the_commit_pass(use, evaluation):
    module = Task(*USES[use])
    optimizer = PolyStep(module.parameters(), seed=0, rank=4)
    engine = Engine(module, optimizer, evaluation=evaluation, announce=None)
    for batch in list(batches())[:3]:
        step = Recorded(module, batch)
        with engine.observing():
            loss = step()
        before = state(module)
        optimizer.zero_grad()
        engine.probe(step, loss)
        assert_same_state(before, state(module))
        # What is evaluated at the parameters of the commit pass starts from the membranes that it started from.
        assert engine.plan is not None
        if optimizer.progress.step == 0:
            assert torch.equal(step.losses[0], step.losses[1])
        optimizer.step()


@pytest.mark.parametrize("use", USES)
def test_probing_alone_changes_nothing(use):
    make, loss = USES[use]
    probed, plain = Task(make, loss), Task(make, loss)
    engine = engine_of(probed, lr=0.0)
    for batch in batches():
        engine.step(Recorded(probed, batch))
    left = state(probed)  # before the other network resets it: snnTorch's reset reaches every network of the process
    with torch.no_grad():
        for batch in batches():
            plain.loss(plain.net, *batch)
    right = state(plain)
    assert [name for name in left if name.endswith("mem")]
    assert all(torch.equal(left[name], right[name]) for name in left if name.startswith("buffer"))
    assert digest(probed) == digest(plain)


@pytest.mark.parametrize("use", USES)
def test_the_tape_scores_as_the_loop_does(use):
    pending = {}
    for evaluation in ("tape", "loop"):
        module = Task(*USES[use])
        optimizer = PolyStep(module.parameters(), seed=0, rank=4)
        engine = Engine(module, optimizer, evaluation=evaluation, announce=None)
        for batch in list(batches())[:2]:
            step = Recorded(module, batch)
            with engine.observing():
                loss = step()
            optimizer.zero_grad()
            engine.probe(step, loss)
        pending[evaluation] = torch.cat(optimizer.binding.pending.costs)
    assert torch.allclose(pending["tape"], pending["loop"], rtol=1e-5, atol=1e-7)


def test_the_users_reset_in_probes_does_not_reach_other_networks():
    module, other = Task(sequential, after_reset), sequential()
    engine = engine_of(module)
    step = Recorded(module, next(iter(batches())))
    with engine.observing():
        loss = step()
    with torch.no_grad():
        _, membrane = other(torch.ones(2, FEATURES))
    assert bool(membrane.any())
    engine.probe(step, loss)
    assert torch.equal(other[3].mem, membrane)
    with torch.no_grad():
        step()
    assert not bool(other[3].mem.any()), "snnTorch resets one network at a time now: probing() has nothing to protect"


class TwoState(nn.Module):
    """One neuron of a given kind on the outputs of a Linear."""

    def __init__(self, make):
        super().__init__()
        self.fc = nn.Linear(FEATURES, 3)
        self.neuron = make()

    def forward(self, x):
        outputs = [self.neuron(self.fc(x)) for _ in range(STEPS)]
        return torch.stack([spike if isinstance(spike, torch.Tensor) else spike[0] for spike in outputs])


def count_loss(net, x, y):
    return cross_entropy(net(x).sum(0), y)


NEURONS = {
    "Leaky, reset to zero at once": (lambda: snn.Leaky(0.9, reset_mechanism="zero", reset_delay=False), TAPE),
    "Leaky, learned": (lambda: snn.Leaky(0.9, learn_beta=True, learn_threshold=True), TAPE),
    "Lapicque": (lambda: snn.Lapicque(beta=0.9), TAPE),
    "Synaptic": (lambda: snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True), TAPE),
    "Alpha": (lambda: snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True), TAPE),
    "RLeaky": (lambda: snn.RLeaky(0.9, linear_features=3, init_hidden=True), TAPE),
    "RSynaptic": (lambda: snn.RSynaptic(0.8, 0.9, linear_features=3, init_hidden=True), TAPE),
    "fast sigmoid": (lambda: snn.Leaky(0.9, spike_grad=surrogate.fast_sigmoid()), TAPE),
    "no surrogate": (lambda: snn.Leaky(0.9, surrogate_disable=True), TAPE),
    "spike function of the user": (lambda: snn.Leaky(0.9, spike_grad=lambda u: (u >= 0).float()), TAPE),
    "SLSTM": (lambda: snn.SLSTM(3, 3, init_hidden=True), TAPE),
    "LeakyParallel": (lambda: snn.LeakyParallel(3, 3), TAPE),
    "quantised state": (lambda: snn.Leaky(0.9, state_quant=quantise_state(num_bits=4)), TAPE),
}


@pytest.mark.filterwarnings("ignore:Nothing trains what lies before a silent layer")
@pytest.mark.parametrize("kind", NEURONS)
def test_neurons_keep_no_trace_of_probes(kind):
    make, tier = NEURONS[kind]
    module = Task(lambda: TwoState(make), count_loss)
    engine = engine_of(module)
    for batch in list(batches())[:2]:
        step = Recorded(module, batch)
        with engine.observing():
            loss = step()
        before = state(module)
        engine.optimizer.zero_grad()
        engine.probe(step, loss)
        assert_same_state(before, state(module))
        engine.optimizer.step()
    assert tiers(engine)["net.fc"] == tier
    reasons = {a.block.name: a.note for a in engine.plan.assignments}
    assert tier == TAPE or "Error" in reasons["net.fc"], "the plan names what the tape refused"


def test_a_manual_step_starts_where_its_closure_starts(tmp_path):
    given = []

    class Manual(Task):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            given.append(batch)
            self.seen = batch  # set before the closure, and read by it

            def closure():
                loss = self.loss(self.net, *self.seen)
                self.losses.append(loss.detach())
                return loss

            self.optimizers().step(closure)

        def configure_optimizers(self):
            return PolyStep(self.parameters(), seed=0, rank=4, lr=0.0)

    module, plain = Manual(sequential, carried), Task(sequential, carried)
    fit(tmp_path, module, epochs=1)
    with torch.no_grad():
        for batch in given:
            plain.loss(plain.net, *batch)
    assert torch.equal(module.net[3].mem, plain.net[3].mem)


def test_networks_without_it_do_not_import_it():
    code = (
        "import sys, torch, lightning_polystep as p\n"
        "m = torch.nn.Linear(2, 2)\n"
        "p.Engine(m, p.PolyStep(m.parameters()), announce=None).step(lambda: m(torch.ones(1, 2)).sum())\n"
        "assert not {'snntorch', 'brevitas'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["StateLeaky", "LinearLeaky"])
def test_a_leak_that_its_neuron_never_reads_is_held(kind):
    sizes = {"channels": 3} if kind == "StateLeaky" else {"in_features": 4, "out_features": 3}
    module = nn.ModuleDict({"neuron": getattr(snn, kind)(beta=torch.tensor(0.9), learn_beta=True, **sizes)})
    held = SnnTorchAdapter(module).held()
    assert list(held) == ["neuron.beta"]
    assert "never reads it" in held["neuron.beta"]
    assert SnnTorchAdapter(snn.Leaky(0.9, learn_beta=True)).held() == {}
