"""Kill fits of the command line and resume them: ``python -m benchmarks.killed_fits configs/cartpole.yaml --kills 3``.

Each configuration is fitted once in peace and once struck by SIGKILL at random, up to eight checkpoints later,
resumed from the newest intact one, struck again, and so on. Both save after every step; what the last checkpoints hold,
parameters and optimizer, must be the same to the bit. Other arguments (``--data.variables 1000``) go to the fits.
Prints a table, then one line of JSON; exits with 1 if anything differs. Where ``benchmarks.faults`` strikes one small
network thousands of times in every phase, this looks at whole configurations.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from benchmarks.common import REPOSITORY, finish, make_parser, show
from lightning_polystep.checkpoints import newest_intact

_CALLBACK = "pytorch_lightning.callbacks.ModelCheckpoint"
# A fit is struck after so many new checkpoints at the most, and so many seconds after that. Not after its last step:
# the best checkpoint that the newest one knows of may have been replaced by then.
_MOST_SAVED, _LATEST_SECONDS = 8, 0.1
_COMPARED = ("state_dict", "optimizer_states", "global_step", "epoch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Strike, resume, compare and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--kills", type=int, default=3, help="of each fit")
    options, passed_on = parser.parse_known_args(arguments)
    results = [compare(config, options, passed_on) for config in options.configs]
    rows = [[each["config"], *(str(each[key]) for key in ("kills", "steps", "same"))] for each in results]
    show("Killed and resumed", ["configuration", "kill -9", "steps", "same bits"], rows)
    options.configs = [str(config) for config in options.configs]
    finish("killed_fits", options, {"fits": results, "passed_on": passed_on})
    if not all(each["same"] for each in results):
        sys.exit(1)


def compare(config: Path, options: argparse.Namespace, passed_on: Sequence[str]) -> dict[str, Any]:
    """Fit a configuration in peace and under fire; return whether the last checkpoints hold the same.

    Args:
        config: Of the fit.
        options: ``kills`` and ``seed``.
        passed_on: To the command line of the fit.
    """
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, struck = Path(folder) / "whole", Path(folder) / "struck"
        with start(config, whole, passed_on) as process:
            ended(process, whole)
        kills = 0
        while kills < options.kills:
            with start(config, struck, passed_on) as process:
                if not strike(process, struck, draw):
                    break
            kills += 1
        with start(config, struck, passed_on) as process:
            ended(process, struck)
        one, other = held(whole), held(struck)
    return {"config": str(config), "kills": kills, "steps": one["global_step"], "same": alike(one, other)}


def start(config: Path, folder: Path, passed_on: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a fit that saves after every step, from the newest checkpoint in a folder if there is one."""
    saves = {"every_n_train_steps": "1", "save_top_k": "-1", "dirpath": str(folder / "saved")}
    command = [sys.executable, "-m", "lightning_polystep", "fit", "--config", str(config), *passed_on]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.save_dir={folder}"]
    command += [f"--trainer.callbacks+={_CALLBACK}", *(f"--trainer.callbacks.{key}={saves[key]}" for key in saves)]
    checkpoint = newest_intact(folder / "saved") if folder.exists() else None
    folder.mkdir(exist_ok=True)
    if checkpoint is not None:
        command += ["--ckpt_path", str(checkpoint)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY)


def ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a fit that is to end well.

    Raises:
        RuntimeError: With the end of its log, if it does not.
    """
    if process.wait():
        raise RuntimeError(f"The fit ended with {process.returncode}: {(folder / 'log').read_text()[-2000:]}")


def strike(process: subprocess.Popen[bytes], folder: Path, draw: random.Random) -> bool:
    """Kill a fit once it has saved some new checkpoints; return whether it was still running."""
    before, wanted = set((folder / "saved").glob("*.ckpt")), draw.randint(1, _MOST_SAVED)
    while process.poll() is None and len(set((folder / "saved").glob("*.ckpt")) - before) < wanted:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, _LATEST_SECONDS))
    if process.poll() is not None:
        ended(process, folder)
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def held(folder: Path) -> dict[str, Any]:
    """Return what is compared of the checkpoint of the last step."""
    every = (torch.load(path, weights_only=False) for path in (folder / "saved").glob("*.ckpt"))
    last = max(every, key=lambda each: each["global_step"])
    return {name: last[name] for name in _COMPARED}


def alike(one: Any, other: Any) -> bool:
    """Tell whether two nested containers hold the same, to the bit.

    Example:
        >>> alike({"a": [torch.ones(2), 3]}, {"a": [torch.ones(2), 3]}), alike([torch.ones(2)], [torch.ones(3)])
        (True, False)
    """
    ours, shape = pytree.tree_flatten(one)
    theirs, other_shape = pytree.tree_flatten(other)
    return shape == other_shape and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    main()
