"""Candidates per second over whole steps, ours against polystep 1.1.0: ``python -m benchmarks.throughput``.

Both train the same hard LIF network (784-128-10, T = 15) on the same batches with the same threads, in turns. A step of
ours is ``Engine.step``: observe, propose, score, transport, move; one of theirs is ``PolyStepOptimizer.step_batch``.
Warm-up steps (compilation, the plan, the first bases) do not count. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import peer
from benchmarks.common import (
    COLOURS,
    REFRESH,
    Batch,
    Images,
    Task,
    finish,
    load_images,
    make_parser,
    median_and_spread,
    new_picture,
    prepare,
    save_picture,
    show,
)
from lightning_polystep import Engine, PolyStep
from models import SpikingMLP


class Contender(Protocol):
    """Something that makes steps and counts the candidates that it has scored."""

    @property
    def candidates(self) -> int:
        """Candidates scored so far."""
        ...

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Make one whole step."""
        ...


class Ours:
    """Trains a network with an engine.

    Args:
        network: The network.
        seed: Of its draws.
        rank: Directions per row; None is the plan's choice.
    """

    def __init__(self, network: nn.Module, seed: int, rank: int | None) -> None:
        self.task = Task(network)
        self.engine = Engine(self.task, PolyStep(self.task.parameters(), rank=rank, seed=seed), announce=None)

    @property
    def candidates(self) -> int:
        """Candidates scored so far."""
        return self.engine.optimizer.progress.candidates

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Make one whole step."""
        self.engine.step(lambda: self.task(images, labels))

    def tiers(self) -> dict[str, str]:
        """Return how the plan scores each block."""
        assignments = self.engine.plan.assignments if self.engine.plan else []
        return {assignment.block.name: assignment.tier.name for assignment in assignments}


@dataclass
class Rates:
    """What a contender did in its rounds.

    Args:
        candidates: Per step.
        per_second: Candidates per second, one figure per round.
        step_seconds: Seconds per step, one figure per round.
    """

    candidates: int
    per_second: list[float]
    step_seconds: list[float]

    def record(self, batch: int) -> dict[str, Any]:
        """Return it for the record.

        Args:
            batch: Samples per candidate.
        """
        return {
            "candidates_per_step": self.candidates,
            "candidates_per_second": median_and_spread(self.per_second),
            "candidate_samples_per_second": median_and_spread([batch * rate for rate in self.per_second]),
            "seconds_per_step": median_and_spread(self.step_seconds),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    images = load_images(options)
    network = SpikingMLP(tuple(options.sizes), num_steps=options.num_steps)
    ours = Ours(SpikingMLP(tuple(options.sizes), num_steps=options.num_steps), options.seed, options.rank)
    ours.task.network.load_state_dict(network.state_dict())
    contenders: dict[str, Contender] = {"ours": ours}
    results: dict[str, Any] = {"data": images.source, "peer_missing": peer.missing()}
    if results["peer_missing"] is None:
        contenders["peer"], results["peer_settings"] = _make_peer(network, images, options)
    rates = compete(contenders, images, options, ours)
    results |= {name: rate.record(options.batch) for name, rate in rates.items()}
    results["ours"] |= {"tiers": ours.tiers(), "seconds_by_verb": _by_verb(ours)}
    if "peer" in rates:
        results["ratio"] = _ratio(rates)
    report(results, options)
    if options.plot:
        plot(rates, results, options)
    finish("throughput", options, results)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` makes everything small."""
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=peer.BATCH)
    parser.add_argument("--rank", type=int, help="directions per row of ours (default: the plan's choice)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--steps", type=int, default=20, help=f"of ours per round, best a multiple of {REFRESH}")
    parser.add_argument("--peer-steps", type=int, default=1, help="of theirs per round")
    parser.add_argument("--peer-coordinates", type=int, help="of its subspace at most, for short trials (default: all)")
    options = parser.parse_args(arguments)
    options.sizes, options.num_steps = [784, 128, 10], 15
    options.warmup, options.peer_warmup = REFRESH, 1
    if options.quick:
        options.sizes, options.num_steps, options.batch = [64, 16, 10], 4, 32
        options.rounds, options.steps, options.warmup, options.peer_coordinates = 2, 2, 2, 100
    return options


def _make_peer(network: SpikingMLP, images: Images, options: argparse.Namespace) -> tuple[Contender, dict[str, Any]]:
    (batch,) = images.batches(options.batch, 1, options.seed)
    chunks = peer.CHUNKS[:1] if options.quick else peer.CHUNKS
    chunk, speeds = peer.fastest_chunk(network, batch, options.seed, chunks)
    contender = peer.Peer(network, nn.CrossEntropyLoss(), options.seed, chunk, options.peer_coordinates)
    with torch.no_grad():
        agreement = (contender.network(batch[0]) == network(batch[0])).all(1).double().mean()
    settings = {**peer.SETTINGS, **peer.SUBSPACE, "chunk_size": chunk, "chunk_sizes_tried": speeds}
    return contender, {**settings, "samples_with_our_scores": float(agreement)}


def compete(
    contenders: dict[str, Contender], images: Images, options: argparse.Namespace, ours: Ours
) -> dict[str, Rates]:
    """Warm both up, then let them take turns on the same batches.

    Args:
        contenders: By name, "ours" among them.
        images: Where batches are drawn from.
        options: How many.
        ours: The engine whose clock starts after its warm-up.
    """
    steps = {"ours": options.steps, "peer": options.peer_steps}
    warmup = {"ours": options.warmup, "peer": options.peer_warmup}
    for name, contender in contenders.items():
        _round(contender, images.batches(options.batch, warmup[name], options.seed + 1))
    ours.engine.clock.reset()
    rates = {name: Rates(0, [], []) for name in contenders}
    for turn in range(options.rounds):
        for name, contender in contenders.items():
            batches = images.batches(options.batch, steps[name], options.seed + 2 + turn)
            candidates, seconds = _round(contender, batches)
            rates[name].candidates = candidates // len(batches)
            rates[name].per_second.append(candidates / seconds)
            rates[name].step_seconds.append(seconds / len(batches))
    return rates


def _round(contender: Contender, batches: Sequence[Batch]) -> tuple[int, float]:
    """Return the candidates and the seconds of some whole steps."""
    before, start = contender.candidates, time.perf_counter()
    for images, labels in batches:
        contender.step(images, labels)
    return contender.candidates - before, time.perf_counter() - start


def _by_verb(ours: Ours) -> dict[str, float]:
    seconds = ours.engine.clock.seconds
    return {verb: value / sum(seconds.values()) for verb, value in seconds.items()}


def _ratio(rates: dict[str, Rates]) -> dict[str, float]:
    """Return the ratio of each round, by median and spread: neighbours in time saw the same machine."""
    pairs = zip(rates["ours"].per_second, rates["peer"].per_second, strict=True)
    return median_and_spread([ours / theirs for ours, theirs in pairs])


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for name in ("ours", "peer"):
        if name in results:
            rate, found = results[name]["candidates_per_second"], results[name]
            rows.append(
                [
                    "ours" if name == "ours" else f"polystep {peer.VERSION}",
                    f"{found['candidates_per_step']:,}",
                    f"{found['seconds_per_step']['median']:.3f}",
                    f"{rate['median']:,.0f}",
                    f"{rate['low']:,.0f} - {rate['high']:,.0f}",
                    f"{found['candidate_samples_per_second']['median']:.3g}",
                ]
            )
    shares = ", ".join(f"{verb} {share:.0%}" for verb, share in results["ours"]["seconds_by_verb"].items())
    notes = [f"ours by verb: {shares}", f"data: {results['data']}"]
    if "ratio" in results:
        ratio = results["ratio"]
        notes.insert(0, f"ratio {ratio['median']:,.0f} ({ratio['low']:,.0f} - {ratio['high']:,.0f} over rounds)")
        notes.append(f"chunk size of the peer: {results['peer_settings']['chunk_size']}, the fastest of those tried")
    else:
        notes.append(f"no peer: {results['peer_missing']}")
    shape = "-".join(map(str, options.sizes))
    title = f"Whole steps: LIF {shape}, T={options.num_steps}, batch {options.batch}, {options.threads} threads"
    head = ["", "candidates/step", "s/step", "candidates/s", "over rounds", "candidate-samples/s"]
    show(title, head, rows, notes)


def plot(rates: dict[str, Rates], results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the rates, and where our time goes."""
    figure, (left, right) = new_picture(2)
    labels = []
    for position, (name, rate) in enumerate(rates.items()):
        labels.append("ours" if name == "ours" else f"polystep {peer.VERSION}")
        middle = median_and_spread(rate.per_second)["median"]
        left.plot([position] * len(rate.per_second), rate.per_second, "_", color=COLOURS[name], markersize=18)
        left.plot(position, middle, "o", color=COLOURS[name], markersize=8)
        left.annotate(f"{middle:,.0f}", (position, middle), (16, 0), textcoords="offset points", va="center")
    left.plot([], [], "o", color="0.4", label="median")
    left.plot([], [], "_", color="0.4", markersize=14, label="each round")
    left.set(yscale="log", ylabel="candidates per second (log scale)", title=f"Whole steps, batch {options.batch}")
    left.set_xticks(range(len(labels)), labels)
    left.set_xlim(-0.5, len(rates) - 0.3)
    left.margins(y=0.2)
    left.legend(frameon=False)
    shares = results["ours"]["seconds_by_verb"]
    milliseconds = [1e3 * share * results["ours"]["seconds_per_step"]["median"] for share in shares.values()]
    right.barh(list(shares), milliseconds, color=COLOURS["ours"], label="ours")
    right.legend(frameon=False, loc="lower right")
    right.set_axisbelow(True)
    right.grid(False, axis="y")
    right.invert_yaxis()
    right.set(xlabel="milliseconds per step", title="Our step by verb")
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
