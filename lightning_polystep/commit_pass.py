"""Observe: the commit pass, the one run of the user's step that counts, and what it has shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_polystep import guards
from lightning_polystep.health import Health
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.non_finite import HardInputs, noticing
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.plan import Plan
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.sites import Observation
from lightning_polystep.snapshot import Snapshot
from lightning_polystep.step import observe
from lightning_polystep.trained import Trained


class CommitPass:
    """The latest commit pass.

    Args:
        trained: The module that runs.
        inputs: Learns what its layers are given.
        recording: Takes its tape.

    Attributes:
        seen: What sites and embeddings were given.
        before: What everything was when it began; None where no plan runs the step again from there.
        runs: Whether it is still going on, as around the probes of manual optimization.
    """

    def __init__(self, trained: Trained, inputs: InputLearning, recording: Recording) -> None:
        self.recording = recording
        self.seen = Observation()
        self.before: Snapshot | None = None
        self.runs = False
        self._trained = trained
        self._inputs = inputs
        self._hard_inputs = HardInputs()
        self._health = Health(trained.module)

    @contextmanager
    def running(
        self, noise_key: tuple[int, int, int], code: Any, plan: Plan | None, *, records: bool
    ) -> Iterator[None]:
        """Wrap the pass: no autograd, seeded noise, sites seen.

        Args:
            noise_key: (seed, step, micro-batch).
            code: What runs: a function, a method or a ``functools.partial``, which holds the batch.
            plan: How candidates will be scored; None while that is not known.
            records: Whether its tape is wanted.
        """
        module = self._trained.module
        measured = self._inputs.measured(self._inputs.own_batch)
        with (
            self._health.looking(),
            self._trained.adapters.observing(),
            torch.no_grad(),
            noise_frame(*noise_key),
            observe(module, self._trained.blocks, measured) as self.seen,
            noticing(module) as self._hard_inputs,
            self._trained.recognised.capturing(),
        ):
            self.runs = True
            self.remember(code, plan)
            try:
                with self.recording.recording() if records else nullcontext():
                    yield
            finally:
                self.runs = False
            if not self._inputs.sharded:
                self.take_inputs()
                self._inputs.learn()

    def remember(self, code: Any, plan: Plan | None) -> None:
        """Remember what everything is where the step begins, if it may be run again from there.

        Args:
            code: What runs the step.
            plan: How candidates will be scored; None while that is not known.
        """
        if plan is None:
            self.before = Snapshot.of_step(self._trained.module, code, ())
        elif plan.reruns_step:
            self.before = Snapshot.of_step(self._trained.module, code, () if plan.live_metrics else (Metric,))
        else:
            self.before = None

    def take_inputs(self) -> None:
        """Take what sites have seen, and what the tape shows of parameters that are in no layer."""
        tape, blocks = self.recording.tape, self._trained.blocks
        if tape is not None:
            wanted = self._inputs.measured(self._inputs.own_batch)
            self.seen.read(tape, [block for block in blocks if block.name in wanted])
            self.seen.tell_hidden(tape, [parameter for block in blocks for parameter in block.parameters])
        self._inputs.take(self.seen)

    def unfit(self, loss: Tensor) -> tuple[str, str] | None:
        """Return why the micro-batch must not be scored, as a cause and a message; None when it can be.

        Args:
            loss: What the pass returned.

        Raises:
            ValueError: When that is no floating-point tensor.
        """
        if not bool(torch.isfinite(guards.check_loss(loss)).all()):
            return "loss", guards.NON_FINITE_LOSS
        layers = self._hard_inputs.non_finite()
        return ("inputs", guards.non_finite_inputs(layers)) if layers else None
