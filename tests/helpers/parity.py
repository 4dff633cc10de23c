"""One harness for every way of scoring a candidate: all of them against networks that were built by hand.

A :class:`Case` is a small network with its batch and its loss. :func:`prepare` runs the commit pass and proposes
candidates for each block; :func:`reference_losses` then copies the network once per candidate, moves one row of the
copy by plain indexing and runs it. It shares no code with the tiers but the noise frame, which is part of the question.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_polystep.blocks import find_blocks
from lightning_polystep.layers import LIF, HardMoE, LastMembrane, SlotArgmaxAttention, SpikeCount, TimeFirst
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import InputStatistics, Proposal
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.fastest import fastest_tier
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import Capture, NotAStackError, capturing
from lightning_polystep.scoring.stack_tier import StackTier
from lightning_polystep.scoring.taped import Recording, TapeTier
from lightning_polystep.scoring.tier import Tier
from lightning_polystep.sites import Observation
from lightning_polystep.step import learn_inputs, observe, propose

OUTCOME, INCREMENTAL = "outcome", "incremental"
TAPE, LOOP = "tape", "loop"
NOISE_KEY = (11, 0, 0)


@dataclass(frozen=True)
class Case:
    """A network to score.

    ``tiers`` says which tier the plan should choose for each block; ``reason`` is a part of what it should say where
    that is not the fastest. A module with a ``criterion`` has its own loss.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    tiers: dict[str, str]
    reason: str = ""
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __str__(self) -> str:
        return self.name

    def loss_of(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return getattr(module, "criterion", self.loss)(module(inputs), targets)


@dataclass
class Prepared:
    """A network after its commit pass, with the candidates of each block."""

    module: nn.Module
    probe: Probe
    seen: Observation
    proposals: dict[str, Proposal]
    evaluate: Callable[[nn.Module], Tensor]
    commit_loss: Tensor
    statistics: dict[str, InputStatistics] = field(default_factory=dict)
    capture: Capture = field(default_factory=Capture)
    recording: Recording = field(default_factory=Recording)

    def tape_tier(self, name: str) -> TapeTier:
        return TapeTier(self.proposals[name].block, self.recording)

    def stack_tier(self, name: str) -> StackTier:
        return fastest_tier(self.proposals[name].block, recognise(self.module), self.capture)


def prepare(case: Case, dtype: torch.dtype = torch.float64, **group: Any) -> Prepared:
    """Build the network of a case, run its batch once and propose a few candidates for every block."""
    torch.manual_seed(0)
    module = case.build().to(dtype).train()
    inputs, targets = (t.to(dtype) if t.is_floating_point() else t for t in case.batch())

    def evaluate(network: nn.Module) -> Tensor:
        return case.loss_of(network, inputs, targets)

    try:
        stack = recognise(module)
    except NotAStackError:
        stack = None
    capture = Capture()
    optimizer = PolyStep(module.parameters(), seed=0, **{"polytope": "simplex", **group})
    blocks = find_blocks(module, optimizer.param_groups)
    statistics: dict[str, InputStatistics] = {}
    recording = Recording()
    with (
        torch.no_grad(),
        noise_frame(*NOISE_KEY),
        observe(module, blocks, {block.name for block in blocks}) as seen,
        capturing(stack, capture) if stack is not None else nullcontext(),
        recording.recording(),
    ):
        commit_loss = evaluate(module)
    recording.ends_in(commit_loss)
    learn_inputs(seen.take_moments(), statistics)
    for block in blocks:
        if block.subspace == "inputs" and block.name not in statistics:
            block.subspace = "gaussian"
    proposals = {}
    for block in blocks:
        reach = torch.tensor([1.0, 2.0, 1.5]).repeat(block.rows)[
            : block.rows
        ]  # rows differ in how wide they are probed
        known = statistics.get(block.name)
        proposals[block.name] = propose(block, known, reach, seed=0, step=0, rank=2, most_rows=5)
    probe = Probe(module, lambda: evaluate(module), NOISE_KEY)
    return Prepared(module, probe, seen, proposals, evaluate, commit_loss, statistics, capture, recording)


def sites(prepared: Prepared) -> dict[str, Proposal]:
    """Return the proposals whose block is a layer."""
    return {name: p for name, p in prepared.proposals.items() if p.block.site is not None}


def losses_of(tier: Tier, prepared: Prepared, proposal: Proposal, start: int = 0, stop: int | None = None) -> Tensor:
    """Score some candidates by one tier."""
    with prepared.probe.isolated():
        return tier.score(proposal, prepared.probe, start, proposal.candidates if stop is None else stop)


def reference_losses(prepared: Prepared, proposal: Proposal) -> Tensor:
    """Return the loss of every candidate, each from a network of its own."""
    return torch.stack([_run(prepared, _moved(prepared.module, proposal, c)) for c in range(proposal.candidates)])


def _moved(module: nn.Module, proposal: Proposal, candidate: int) -> nn.Module:
    """Copy the network and move one row of one block."""
    directions = [vertex for particle in proposal.directions for vertex in particle]
    place, vertex = divmod(candidate, len(directions))
    row = int(proposal.rows[place])
    displacement = proposal.probe_radius * proposal.reach[place] * directions[vertex]
    twin = copy.deepcopy(module)
    used = 0
    for name in proposal.block.parameter_names:
        flat = twin.get_parameter(name).data.view(-1)
        width = len(flat) // proposal.block.rows
        flat[row * width : (row + 1) * width] += displacement[used : used + width]
        used += width
    assert used == len(displacement)
    return twin


def _run(prepared: Prepared, module: nn.Module) -> Tensor:
    with torch.no_grad(), noise_frame(*NOISE_KEY):
        return prepared.evaluate(module).double()


class Attention(nn.Module):
    """``out_proj`` is a Linear, but MultiheadAttention reads its weight and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x)
        return self.head(self.norm(x + attended).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 6)
        self.decode.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.mix(self.embedding(tokens).mean(1))))


class TiedLinears(nn.Module):
    """Two layers of one weight, the first of which is a site."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Recurrent(nn.Module):
    """The same site at each of four steps, fed with what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3 + 5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            hidden = torch.tanh(self.cell(torch.cat([step, hidden], dim=1)))
        return self.head(hidden)


class LongShortTerm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


class ReadsANumber(nn.Module):
    """What Python makes of ``.item()`` is not on the tape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(hidden / (1.0 + hidden.max().item()))


class Functional(nn.Module):
    """Never calls its layers: reads their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.linear(x, self.fc.weight, self.fc.bias)


class CallsAndReads(nn.Module):
    """Calls its layer and reads its weight as well, so a shift of its output is not the whole change."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.fc(x)), self.fc.weight)


class Stacked(nn.Module):
    """A network with its loss, as a LightningModule holds them."""

    def __init__(self, *layers: nn.Module, label_smoothing: float = 0.0, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.network = nn.Sequential(*layers)
        self.criterion = criterion or nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 2, 7, 7), torch.randint(3, (6,))


def vectors() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4), torch.randint(3, (12,))


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, 3), torch.randint(3, (6,))


def _conv_net(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, **options), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


def _parametrised() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.utils.parametrize.register_parametrization(module[0], "weight", Half())
    return module


_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided without bias": {"stride": (2, 1), "padding": (1, 2), "bias": False},
    "dilated": {"dilation": 2, "padding": 1},
    "same": {"padding": "same", "dilation": (1, 2)},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": "same", "padding_mode": "circular"},
}

CASES: list[Case] = [
    Case(
        "MLP with batch norm and dropout",
        lambda: nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(8, 5),
            nn.Dropout(),
            nn.Linear(5, 3),
        ),
        vectors,
        {"0": TAPE, "1.weight": TAPE, "1.bias": TAPE, "4": TAPE, "6": TAPE},
    ),
    *[
        Case(f"convolution, {name}", _conv_net(**options), images, {"0": TAPE, "4": TAPE})
        for name, options in _CONVOLUTIONS.items()
    ],
    Case(
        "grouped, transposed and 1-d convolutions",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 4, 2, groups=2, bias=False),
            nn.ConvTranspose2d(4, 2, 2, bias=False),
            nn.Dropout2d(0.3),
            nn.Flatten(2),
            nn.Conv1d(2, 2, 3, bias=False),
            nn.Flatten(),
            nn.Linear(46, 3),
        ),
        images,
        {
            "0": TAPE,
            "1.weight": TAPE,
            "1.bias": TAPE,
            "2.weight": TAPE,
            "3.weight": TAPE,
            "6.weight": TAPE,
            "8": TAPE,
        },
    ),
    Case(
        "hard LIF with learned leak and threshold",
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            LIF(torch.full((6,), 0.8), 0.5, num_steps=9, learn_beta=True, learn_threshold=True),
            nn.Linear(6, 3, bias=False),
            LIF(0.9, 0.4, learn_beta=True),
            SpikeCount(),
        ),
        lambda: (torch.randn(40, 4), torch.randint(3, (40,))),
        {"0": TAPE, "1.beta": TAPE, "1.threshold": TAPE, "2": TAPE, "3.beta": TAPE},
    ),
    Case(
        "hard LIF and its loss",
        lambda: Stacked(
            nn.Flatten(), nn.Linear(4, 6), LIF(0.8, 0.5, num_steps=9), nn.Linear(6, 3), LIF(0.9, 0.4), SpikeCount()
        ),
        lambda: (torch.randn(40, 2, 2), torch.randint(3, (40,))),
        {"network.1": OUTCOME, "network.3": OUTCOME},
    ),
    Case(
        "hard LIF with learned constants and last membranes, and its loss",
        lambda: Stacked(
            nn.Linear(4, 6),
            LIF(torch.full((6,), 0.8), 0.5, num_steps=5, reset_mechanism="subtract", learn_beta=True),
            nn.Linear(6, 3, bias=False),
            LIF(0.9, 0.4, learn_threshold=True, return_membrane=True),
            LastMembrane(),
            label_smoothing=0.1,
        ),
        lambda: (torch.randn(40, 4), torch.randint(3, (40,))),
        {"network.0": OUTCOME, "network.1.beta": TAPE, "network.2": OUTCOME, "network.3.threshold": TAPE},
    ),
    Case(
        "hard LIF on a changing current, and its loss",
        lambda: Stacked(
            nn.Linear(3, 6), LIF(0.8, 0.5), nn.Linear(6, 5), LIF(0.8, 0.3), nn.Linear(5, 3), LIF(0.9, 0.4), SpikeCount()
        ),
        lambda: (torch.randn(9, 20, 3), torch.randint(3, (20,))),
        {"network.0": INCREMENTAL, "network.2": INCREMENTAL, "network.4": OUTCOME},
    ),
    Case(
        "a hard mixture of experts and its loss",
        lambda: Stacked(
            nn.Linear(4, 6),
            nn.ReLU(),
            HardMoE([nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(2)], router=6),
            nn.Linear(4, 3),
        ),
        lambda: (torch.randn(40, 4), torch.randint(3, (40,))),
        {
            "network.0": INCREMENTAL,
            **{f"network.2.experts.{expert}.{place}": INCREMENTAL for expert in range(2) for place in (0, 2)},
            "network.2.router": OUTCOME,
            "network.3": OUTCOME,
        },
    ),
    Case(
        "argmax attention over slots and its loss",
        lambda: Stacked(nn.Linear(4, 6), nn.ReLU(), SlotArgmaxAttention(6, 3), nn.Linear(6, 3)),
        lambda: (torch.randn(40, 4), torch.randint(3, (40,))),
        {"network.0": INCREMENTAL, "network.2.keys": INCREMENTAL, "network.2.value": INCREMENTAL, "network.3": OUTCOME},
    ),
    Case(
        "hard LIF on events, batch first, and its loss",
        lambda: Stacked(TimeFirst(), nn.Linear(6, 5), LIF(0.8, 0.3), nn.Linear(5, 3), LIF(0.9, 0.4), SpikeCount()),
        lambda: (torch.rand(20, 7, 2, 3).round(), torch.randint(3, (20,))),
        {"network.1": INCREMENTAL, "network.3": OUTCOME},
    ),
    Case(
        "attention",
        Attention,
        lambda: (torch.randn(5, 3, 4), torch.randint(3, (5,))),
        {
            "attention.in_proj_weight": TAPE,
            "attention.in_proj_bias": TAPE,
            "attention.out_proj": TAPE,
            "norm.weight": TAPE,
            "norm.bias": TAPE,
            "head": TAPE,
        },
    ),
    Case(
        "tied embedding",
        Tied,
        lambda: (torch.randint(6, (8, 3)), torch.randint(6, (8,))),
        {"embedding.weight": TAPE, "mix": TAPE, "decode.bias": TAPE},
    ),
    Case(
        "tied linear layers",
        TiedLinears,
        vectors,
        {"first": TAPE, "first.bias": TAPE, "second.bias": TAPE, "head": TAPE},
        reason="weight shared between modules",
    ),
    Case(
        "LSTM",
        LongShortTerm,
        sequences,
        {
            "lstm.weight_ih_l0": TAPE,
            "lstm.weight_hh_l0": TAPE,
            "lstm.bias_ih_l0": TAPE,
            "lstm.bias_hh_l0": TAPE,
            "head": TAPE,
        },
    ),
    Case("a layer used at every step", Recurrent, sequences, {"cell": TAPE, "head": TAPE}),
    Case(
        "a number read from a tensor",
        ReadsANumber,
        vectors,
        {"first": LOOP, "second": TAPE},
        reason="Python reads numbers that depend on it in parity.py",
    ),
    Case("weights read, layer never called", Functional, vectors, {"fc": TAPE, "gain": TAPE}),
    Case(
        "a layer both called and read",
        CallsAndReads,
        lambda: (torch.randn(12, 4), torch.randint(4, (12,))),
        {"fc": TAPE},
    ),
    Case(
        "a weight that is a function of a parameter",
        _parametrised,
        vectors,
        {"0.bias": TAPE, "0.parametrizations.weight.original": TAPE, "2": TAPE},
    ),
]
