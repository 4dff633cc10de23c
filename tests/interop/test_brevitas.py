"""Unmodified Brevitas networks: they train from the tape, and probes neither advance statistics nor move a scale."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_polystep import Engine, PolyStep
from lightning_polystep.interop.adapters import adapters_for
from lightning_polystep.interop.brevitas import BrevitasAdapter, UncalibratedScaleError
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

qnn = pytest.importorskip("brevitas.nn", reason="brevitas is not installed (extra brevitas)")
quant = pytest.importorskip("brevitas.quant")
graph = pytest.importorskip("brevitas.graph.calibrate")
examples = pytest.importorskip("brevitas_examples.bnn_pynq.models.FC")

TAPE, LOOP = "tape", "loop"
TAPED = {TAPE, "units", "operands"}


def tfc(bits):
    """The fully connected network of Brevitas' own examples."""
    return lambda: examples.FC(3, bits, bits, 8 if bits > 1 else 1, 1, [16, 16], (1, FEATURES))


def mlp(weight_quant=quant.Int8WeightPerTensorFloat):
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(FEATURES, 10, bias=True, weight_bit_width=4, weight_quant=weight_quant),
        qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
        qnn.QuantLinear(10, 3, bias=True, weight_quant=weight_quant),
    )


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        qnn.QuantConv2d(1, 6, (2, 2), bias=True, weight_quant=quant.Int8WeightPerChannelFloat),
        qnn.QuantReLU(bit_width=4),
        nn.Flatten(),
        qnn.QuantLinear(12, 3, bias=True),
    )


class Twice(nn.Module):
    """One quantised activation behind two layers: in training mode each call has a scale of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = qnn.QuantLinear(FEATURES, 8, bias=True), qnn.QuantLinear(8, 8, bias=True)
        self.activation, self.head = qnn.QuantReLU(bit_width=4), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.activation(self.second(self.activation(self.first(x)))))


def calibrated():
    net = mlp()
    with torch.no_grad(), graph.calibration_mode(net):
        for x, _ in batches():
            net(x)
    return net.eval()


def short_collection():
    return nn.Sequential(
        qnn.QuantLinear(FEATURES, 8, bias=True), qnn.QuantReLU(collect_stats_steps=2), qnn.QuantLinear(8, 3, bias=True)
    )


def score(net, x, y):
    return cross_entropy(net(x), y)


NETS = {
    "TFC, 8 bits": tfc(8),
    "TFC, binary": tfc(1),
    "per tensor": mlp,
    "per channel": lambda: mlp(quant.Int8WeightPerChannelFloat),
    "binary weights": lambda: mlp(quant.SignedBinaryWeightPerTensorConst),
    "ternary weights": lambda: mlp(quant.SignedTernaryWeightPerTensorConst),
    "power of two": lambda: mlp(quant.Int8WeightPerTensorFixedPoint),
    "convolution": conv,
}


# Normalised or binary sums of eight samples lie right on a step: rounding decides, and the plan goes by the loop then.
ON_STEPS = {"TFC, 8 bits", "TFC, binary"}


@pytest.mark.filterwarnings("ignore:At pass .* their frozen scales")
@pytest.mark.parametrize("name", NETS)
def test_it_trains_from_the_tape_and_twice_the_same(tmp_path, name):
    runs = []
    for _ in range(2):
        module = Task(NETS[name], score)
        with pytest.warns(UserWarning, match="Adam"):
            engine = fit(tmp_path, module, epochs=4)
        assert set(tiers(engine).values()) <= ({*TAPED, LOOP} if name in ON_STEPS else TAPED)
        runs.append((digest(module), module.losses))
    losses = runs[0][1]
    # Weights of one scale of 0.1 cannot make scores that are far apart.
    least = 0.95 if name in {"binary weights", "ternary weights"} else 0.9
    assert torch.stack(losses[-4:]).mean() < least * torch.stack(losses[:2]).mean()
    assert runs[0][0] == runs[1][0]


PROBED = {**NETS, "called twice": Twice, "calibrated": calibrated, "collection ends": short_collection}


@pytest.mark.parametrize("evaluation", ["auto", "loop"])
@pytest.mark.parametrize("name", PROBED)
def test_probes_leave_statistics_and_scales_alone(name, evaluation):
    module = Task(PROBED[name], score)
    optimizer = PolyStep(module.parameters(), seed=0, rank=4)
    engine = Engine(module, optimizer, evaluation=evaluation, announce=None)
    for batch in batches():
        step = Recorded(module, batch)
        with engine.observing():
            loss = step()
        before = state(module)
        optimizer.zero_grad()
        engine.probe(step, loss)
        assert_same_state(before, state(module))
        # What is evaluated at the parameters of the commit pass gives its loss again.
        if optimizer.progress.step == 0:
            assert torch.equal(step.losses[0], step.losses[1])
        optimizer.step()


@pytest.mark.parametrize("name", PROBED)
def test_training_at_rest_calibrates_as_running_does(name):
    probed, plain = Task(PROBED[name], score), Task(PROBED[name], score)
    engine = engine_of(probed, lr=0.0)
    for batch in batches():
        torch.manual_seed(0)
        engine.step(Recorded(probed, batch))
    with torch.no_grad():
        for batch in batches():
            plain.loss(plain.net, *batch)
    left, right = state(probed), state(plain)
    kept = [name for name in left if name.endswith((".buffer", ".counter", ".value"))]
    assert kept
    assert_same_state({name: left[name] for name in kept}, {name: right[name] for name in kept})
    assert all(torch.equal(a, b) for a, b in zip(probed.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(PROBED.keys() - ON_STEPS))
def test_the_tape_scores_as_the_loop_does(name):
    costs = {}
    for evaluation in ("tape", "loop"):
        module = Task(PROBED[name], score)
        optimizer = PolyStep(module.parameters(), seed=0, rank=4)
        engine = Engine(module, optimizer, evaluation=evaluation, announce=None)
        for batch in list(batches())[:3]:
            step = Recorded(module, batch)
            optimizer.zero_grad()  # the noise of a step that was not made is that of the next
            with engine.observing():
                loss = step()
            engine.probe(step, loss)
        costs[evaluation] = torch.cat(optimizer.binding.pending.costs)
    # A code on a tie may round either way in another order of addition.
    far = (costs["tape"] - costs["loop"]).abs() > 1e-5
    assert far.double().mean() < 0.02


def test_a_candidate_moves_no_other_units_codes():
    module = Task(mlp, score)
    adapters = adapters_for(module)
    layer = module.net[1]
    batch = next(iter(batches()))
    step = Recorded(module, batch)
    adapters.start()
    with torch.no_grad(), adapters.observing():
        step()
    scale, codes = layer.quant_weight().scale.clone(), layer.quant_weight().int()
    with torch.no_grad(), adapters.probing():
        adapters.rewind()
        layer.weight[0, 0] = 10 * layer.weight.abs().max()
        frozen, moved = layer.quant_weight().scale, layer.quant_weight().int()
    assert torch.equal(frozen, scale)
    assert int((moved != codes).sum()) == 1
    assert not torch.equal(layer.quant_weight().scale, scale), "at the next pass the scale follows the weights"


def test_scales_are_named_as_not_probed():
    module = Task(mlp, score)
    engine = engine_of(module)
    engine.step(Recorded(module, next(iter(batches()))))
    scales = {name for name, _ in module.named_parameters() if name.endswith("scaling_impl.value")}
    assert len(scales) == 2
    assert set(engine.plan.held) == scales
    assert "not probed" in str(engine.plan)
    assert {a.block.name for a in engine.plan.assignments} == {"net.1", "net.3"}


def test_learned_scales_are_held_for_the_true_reason():
    """Not from statistics: nothing would ever calibrate them."""
    learned = {"weight_scaling_impl_type": "parameter", "weight_scaling_init": 0.2}
    acts = [qnn.QuantReLU(), qnn.QuantReLU()]
    acts[1].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter = 301
    net = nn.Sequential(qnn.QuantLinear(4, 3, bias=True, **learned), *acts)
    reasons = list(BrevitasAdapter(net).held().values())
    assert reasons[0].startswith("a learned scale of Brevitas: stays as it is, because a candidate of it would change")
    assert reasons[0].endswith('With scaling_impl_type="stats" the scale follows the weights')
    assert "calibrated by Brevitas from statistics of batches" in reasons[1]
    assert reasons[2].endswith("Brevitas has set it from the statistics of its first batches")


class Gates(nn.Module):
    """Weights that a common scale tracks under names of its own."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = qnn.QuantLSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x.reshape(-1, 2, 3))[0][:, -1])


def test_weights_that_a_scale_tracks_are_probed():
    module = Task(Gates, score)
    engine = engine_of(module)
    engine.step(Recorded(module, next(iter(batches()))))
    probed = {p for a in engine.plan.assignments for p in a.block.parameters}
    rest = {name for name, p in module.named_parameters() if p not in probed}
    assert rest == set(engine.plan.held)
    assert rest
    assert all(name.endswith(".value") for name in rest)


def test_inputs_of_quantised_layers_are_measured_also_as_quantised_tensors():
    module = Task(mlp, score)
    engine = engine_of(module)
    engine.step(Recorded(module, next(iter(batches()))))
    assert {a.block.name: a.block.subspace for a in engine.plan.assignments} == {"net.1": "inputs", "net.3": "inputs"}


def test_a_scale_that_was_never_calibrated_is_an_error():
    module = Task(lambda: mlp().eval(), score)
    engine = engine_of(module)
    with pytest.raises(UncalibratedScaleError, match=r"net\.0\..*never calibrated.*calibration_mode"):
        engine.step(Recorded(module, next(iter(batches()))))


def test_a_scale_that_is_no_number_is_an_error():
    module = Task(mlp, score)
    engine = engine_of(module)
    x, y = next(iter(batches()))
    with pytest.raises(UncalibratedScaleError, match="positive finite"):
        engine.step(Recorded(module, (x * float("nan"), y)))


def test_compiled_quantisers_are_refused(monkeypatch):
    monkeypatch.setattr("brevitas.config.JIT_ENABLED", True)
    with pytest.raises(ValueError, match="BREVITAS_JIT"):
        engine_of(Task(mlp, score))


def test_functions_of_the_user_are_on_the_tape_as_their_forwards():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = qnn.QuantLinear(FEATURES, 3, bias=True)

        def forward(self, x):
            return Rounded.apply(4 * self.layer(x))

    module = Task(Mixed, score)
    engine = engine_of(module)
    engine.step(Recorded(module, next(iter(batches()))))
    (assignment,) = engine.plan.assignments
    assert assignment.tier.name == TAPE
