"""Time the kernels on a batch of a spiking network: ``python -m benchmarks.kernels [--threads 2] [--repeats 15]``.

The numbers have the statistics of an MNIST classifier that has trained for a while: pre-activations and shifts of a
layer that fires, W of a readout that separates classes. Prints a table, then one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_direct_costs, lif_outcome_costs, lif_outcome_dictionary, lif_train_costs

SAMPLES, UNITS, CANDIDATES, STEPS, CLASSES = 1024, 128, 256, 15, 10
INPUTS, INPUT_RATE, TRAIN_CANDIDATES = 64, 0.2, 64  # of a hidden layer that spikes feed
BETA, PROBE_RADIUS = 0.95, 0.3


def main() -> None:
    """Print the timings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    outcome, direct, outcomes = make_arguments()
    current, shifts, *rest = outcome
    extremes = torch.stack([shifts.amin(1), shifts.amax(1)], 1)
    rows: dict[str, Callable[[], Tensor]] = {
        "outcome costs: all": lambda: lif_outcome_costs(*outcome),
        "outcome costs: tables alone (2 extreme candidates)": lambda: lif_outcome_costs(current, extremes, *rest),
        "outcome costs: incumbent alone (no reachable outcome)": lambda: lif_outcome_costs(
            current, torch.zeros_like(extremes), *rest
        ),
        "outcome costs: last membrane": lambda: lif_outcome_costs(*outcome, "cross_entropy_membrane"),
        "outcome costs: subtract": lambda: lif_outcome_costs(*outcome, "cross_entropy_count", "subtract"),
        "direct costs: all": lambda: lif_direct_costs(*direct),
        "direct costs: last membrane": lambda: lif_direct_costs(*direct, "cross_entropy_membrane"),
    }
    for behind in range(3):
        rows[f"train costs: {behind} hidden layers behind"] = partial(lif_train_costs, *make_train_arguments(behind))
    constant = make_train_arguments(1, constant=True)
    rows["train costs: 1 hidden layer behind, constant current"] = partial(lif_train_costs, *constant)
    seconds = {name: fastest(function, options.repeats) for name, function in rows.items()}
    print(
        f"N={SAMPLES} U={UNITS} V={CANDIDATES} ({TRAIN_CANDIDATES} for train costs) T={STEPS} C={CLASSES}, "
        f"{options.threads} threads, float32, fastest run"
    )
    for name, value in seconds.items():
        print(f"  {name:55s} {1e3 * value:8.1f} ms")
    per_outcome = 1e9 * seconds["outcome costs: all"] / outcomes
    print(f"  {outcomes:,} outcomes that candidates reach, {per_outcome:.0f} ns each, all included")
    print(json.dumps({"threads": options.threads, "outcomes": outcomes, "seconds": seconds}))


def fastest(function: Callable[[], Tensor], repeats: int) -> float:
    """Return the seconds of the fastest of some calls, after one that may compile."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def make_arguments() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int]:
    """Return the arguments of both operators, and how many outcomes the candidates of the first reach."""
    current = 0.1 + 0.5 * torch.randn(SAMPLES, UNITS)
    shifts = PROBE_RADIUS * torch.randn(SAMPLES, CANDIDATES)
    weight = torch.randn(CLASSES, UNITS) / UNITS**0.5
    boundaries, trains = lif_outcome_dictionary(BETA, 1.0, STEPS)
    spikes = lif(current, BETA, num_steps=STEPS)
    assert isinstance(spikes, Tensor)
    currents = (spikes @ weight.T).movedim(0, 1).contiguous()
    readout = (currents, torch.full((CLASSES,), BETA), torch.ones(CLASSES), torch.randint(CLASSES, (SAMPLES,)))
    # A candidate of the readout weighs the hidden spikes anew.
    directions = torch.randn(CANDIDATES, UNITS) / (spikes.mean() * UNITS) ** 0.5
    direct_shifts = (PROBE_RADIUS * spikes @ directions.T).movedim(0, 1).contiguous()
    low, high = (
        torch.bucketize(current + shift, boundaries[0], right=True)
        for shift in (shifts.amin(1, keepdim=True), shifts.amax(1, keepdim=True))
    )
    reached = int((high - low).sum())
    return (current, shifts, boundaries, trains, weight, *readout), (direct_shifts, *readout), reached


def make_train_arguments(behind: int, constant: bool = False) -> tuple[Any, ...]:
    """Return the arguments of ``lif_train_costs`` for a layer with some hidden layers of the same width behind it."""
    steps = 1 if constant else STEPS
    spikes = (
        torch.rand(SAMPLES, steps, INPUTS) if constant else (torch.rand(SAMPLES, steps, INPUTS) < INPUT_RATE).float()
    )
    size = spikes.square().mean().mul(INPUTS).sqrt()
    currents = [0.1 + 0.5 * spikes @ torch.randn(INPUTS, UNITS) / size]
    shifts = PROBE_RADIUS * spikes @ torch.randn(INPUTS, TRAIN_CANDIDATES) / size
    sizes, weights = [UNITS] * (behind + 1), []
    for width in (*sizes[1:], CLASSES):
        fired = cast("Tensor", lif(currents[-1].expand(-1, STEPS, -1).movedim(1, 0), BETA)).movedim(0, 1)
        weights.append(torch.randn(width, UNITS) / (fired.mean() * UNITS) ** 0.5 / 2)
        currents.append((0.1 + fired @ weights[-1].T).contiguous())
    betas, levels = ([torch.full((size,), value) for size in sizes] for value in (BETA, 1.0))
    readout = (currents[-1], torch.full((CLASSES,), BETA), torch.ones(CLASSES), torch.randint(CLASSES, (SAMPLES,)))
    return shifts, currents[:-1], betas, levels, weights, *readout


if __name__ == "__main__":
    main()
