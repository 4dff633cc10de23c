"""Peak memory of a step against the time steps, ours and backpropagation's: ``python -m benchmarks.memory``.

Each point is the median of three processes of its own. One imports, makes the batch and the network (784-128-10),
makes a step on two samples, so that kernels are compiled, and then two steps on the whole batch. What a step takes is
the peak resident memory of the process less that of one that stopped before the last two steps. On CUDA it is torch's
own count of the peak. BPTT is Adam through a surrogate gradient. Prints a table, then one line of JSON.

On Linux glibc is told to return large blocks to the system at once, for both methods: the peak is then what is held.
Left to itself (``--mmap-threshold 0``) it keeps the holes between blocks, which add up to 10 MiB, more or less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    COLOURS,
    REPOSITORY,
    Task,
    finish,
    make_parser,
    new_picture,
    prepare,
    save_picture,
    show,
)
from benchmarks.surrogate import with_surrogate
from lightning_polystep import Engine, PolyStep
from models import SpikingMLP

TIME_STEPS = (15, 50, 100, 200, 400)
_MEBIBYTE = 2**20
_REPEATS = 3
_LABELS = {"ours": "ours", "bptt": "BPTT, surrogate gradient, Adam"}

Step = Callable[[Tensor, Tensor], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--time-steps", type=int, nargs="+", default=list(TIME_STEPS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--mmap-threshold", type=int, default=128 * 1024, help="bytes from which glibc keeps no holes; 0: as it likes"
    )
    parser.add_argument("--point", nargs=3, metavar=("METHOD", "T", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.units, options.steps = 128, 2
    if options.quick:
        options.batch, options.units, options.time_steps = 32, 16, options.time_steps[:2]
    prepare(options)
    if options.point:
        method, time_steps, steps = options.point
        print(json.dumps({"peak_bytes": peak(method, int(time_steps), int(steps), options)}))
        return
    results: dict[str, Any] = {method: measure(method, options) for method in _LABELS}
    results["data"] = "random noise: memory does not depend on it"
    report(results, options)
    if options.plot:
        plot(results, options)
    finish("memory", options, results)


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a method's points and how much the longest run takes of what the shortest takes."""
    # Twice, because compiling a kernel that is not in the cache on disk yet takes memory of its own.
    starts, repeats = (1, 1) if options.quick else (2, _REPEATS)
    without = min(_in_a_process(method, options.time_steps[0], 0, options) for _ in range(starts))
    points = []
    for time_steps in options.time_steps:
        peaks = [_in_a_process(method, time_steps, options.steps, options) for _ in range(repeats)]
        bytes_ = int(statistics.median(peaks))
        points.append({"T": time_steps, "process_bytes": bytes_, "step_bytes": max(0, bytes_ - without)})
    first, last = points[0], points[-1]
    growth = {
        key: last[f"{key}_bytes"] / first[f"{key}_bytes"] if first[f"{key}_bytes"] else None
        for key in ("process", "step")
    }
    return {"points": points, "growth": growth, "baseline_bytes": without}


def _in_a_process(method: str, time_steps: int, steps: int, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", "--point", method, str(time_steps), str(steps)]
    command += ["--batch", str(options.batch), "--threads", str(options.threads), "--seed", str(options.seed)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    # A threshold that is set stays; glibc's own grows with every large block that is freed.
    fixed = {"MALLOC_MMAP_THRESHOLD_": str(options.mmap_threshold)} if options.mmap_threshold else {}
    environment = os.environ | fixed
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"The point {method}, T={time_steps} failed:\n{run.stderr}")
    record: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return record["peak_bytes"]


def peak(method: str, time_steps: int, steps: int, options: argparse.Namespace) -> int:
    """Return the peak bytes of this process after some steps.

    Args:
        method: "ours" or "bptt".
        time_steps: T.
        steps: Steps on the whole batch; 0 makes everything but these.
        options: Batch, units and device.
    """
    network = SpikingMLP((784, options.units, 10), num_steps=time_steps).to(options.device)
    images = torch.rand(options.batch, 1, 28, 28, device=options.device)
    labels = torch.randint(10, (options.batch,), device=options.device)
    make = {"ours": _ours, "bptt": _bptt}[method]
    make(network, options.seed)(images[:2], labels[:2])
    step = make(network, options.seed)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        step(images, labels)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _ours(network: SpikingMLP, seed: int) -> Step:
    task = Task(network)
    engine = Engine(task, PolyStep(task.parameters(), seed=seed), announce=None)

    def step(images: Tensor, labels: Tensor) -> None:
        engine.step(lambda: task(images, labels))

    return step


def _bptt(network: SpikingMLP, seed: int) -> Step:
    del seed  # it draws nothing
    task = Task(with_surrogate(network))
    optimizer = torch.optim.Adam(task.parameters())

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        task(images, labels).backward()
        optimizer.step()

    return step


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table, a line per T."""
    rows = []
    for ours, bptt in zip(results["ours"]["points"], results["bptt"]["points"], strict=True):
        cells = [point[key] / _MEBIBYTE for point in (ours, bptt) for key in ("step_bytes", "process_bytes")]
        rows.append([f"T = {ours['T']}", *(f"{cell:,.0f}" for cell in cells)])
    growth = [results[method]["growth"][key] for method in _LABELS for key in ("step", "process")]
    rows.append(["last / first", *("-" if value is None else f"x{value:.2f}" for value in growth)])
    head = ["", "ours: step, MiB", "ours: process, MiB", "BPTT: step, MiB", "BPTT: process, MiB"]
    title = f"Peak memory, LIF 784-{options.units}-10, batch {options.batch}, {options.device}"
    notes = ["step: the peak of the process less that of one that did everything but the steps"]
    show(title, head, rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw what a step takes."""
    figure, (axis,) = new_picture()
    for (method, label), colour in zip(_LABELS.items(), ("ours", "surrogate"), strict=True):
        points = results[method]["points"]
        sizes = [point["step_bytes"] / _MEBIBYTE for point in points]
        axis.plot([point["T"] for point in points], sizes, "o-", color=COLOURS[colour], label=label)
    axis.set(xlabel="time steps T", ylabel="peak memory of a step (MiB)", ylim=(0, None))
    axis.set_title(f"LIF 784-{options.units}-10, batch {options.batch}")
    axis.set_xticks(options.time_steps)
    axis.legend(frameon=False)
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
