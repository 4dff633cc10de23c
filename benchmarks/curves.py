"""Accuracy against seconds of training: the watch that stops while accuracy is measured, and the curve it draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import TensorImages

_AT_ONCE = 2000


@dataclass(frozen=True)
class Sample:
    """Accuracies at one time.

    Args:
        seconds: Of training so far, measuring excluded.
        step: Steps so far.
        val: Accuracy on the validation images.
        test: Accuracy on the test images; None where choices are made.
    """

    seconds: float
    step: int
    val: float
    test: float | None


@dataclass
class Curve:
    """The samples of one run.

    Args:
        samples: In the order of time.
    """

    samples: list[Sample] = field(default_factory=list)

    def seconds_to(self, level: float, part: str = "test") -> float | None:
        """Return when accuracy first reached a level; None if it never did.

        Args:
            level: Between 0 and 1.
            part: "test" or "val".

        Example:
            >>> curve = Curve([Sample(1.0, 5, 0.8, 0.7), Sample(2.0, 10, 0.9, 0.95)])
            >>> curve.seconds_to(0.9), curve.seconds_to(0.99)
            (2.0, None)
        """
        reached = (s.seconds for s in self.samples if (getattr(s, part) or 0.0) >= level)
        return next(reached, None)

    def record(self, levels: Sequence[float]) -> dict[str, Any]:
        """Return the run for the record.

        Args:
            levels: Accuracies whose times are of interest.
        """
        last = self.samples[-1]
        best = max(self.samples, key=lambda sample: sample.val)
        return {
            "seconds": last.seconds,
            "steps": last.step,
            "last_test": last.test,
            "last_val": last.val,
            "test_at_best_val": best.test,
            "seconds_to_test": {str(level): self.seconds_to(level) for level in levels},
            "seconds_to_val": {str(level): self.seconds_to(level, "val") for level in levels},
            "curve": [[s.seconds, s.step, s.val, s.test] for s in self.samples],
        }


class Watch:
    """Counts seconds of training and samples accuracies now and then, with the watch stopped.

    Args:
        network: What is trained.
        val: Validation images.
        test: Test images, for the curve alone; None where choices are made.
        every: Seconds of training between samples.
    """

    def __init__(self, network: nn.Module, val: TensorImages, test: TensorImages | None, every: float) -> None:
        self.curve = Curve()
        self.seconds = 0.0
        self.step = 0
        self._network, self._val, self._test, self._every = network, val, test, every
        self._due = every
        self._since: float | None = None

    def resume(self) -> None:
        """Start, or go on, counting."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop counting."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def stepped(self) -> None:
        """Count a step, and sample when it is time to."""
        self.pause()
        self.step += 1
        if self.seconds >= self._due:
            self.sample()
        self.resume()

    def finish(self) -> Curve:
        """Stop, sample the end and return the curve."""
        self.pause()
        if not self.curve.samples or self.curve.samples[-1].step != self.step:
            self.sample()
        return self.curve

    def sample(self) -> None:
        """Measure now."""
        test = None if self._test is None else accuracy(self._network, self._test)
        self.curve.samples.append(Sample(self.seconds, self.step, accuracy(self._network, self._val), test))
        self._due = self.seconds + self._every


@torch.no_grad()
def accuracy(network: nn.Module, data: TensorImages) -> float:
    """Return the share of images whose highest score is that of their label.

    Args:
        network: From images to scores.
        data: Images and labels.
    """
    training = network.training
    network.eval()
    right = 0
    for images, labels in data.loader(_AT_ONCE):
        scores: Tensor = network(images)
        right += int((scores.argmax(1) == labels).sum())
    network.train(training)
    return right / len(data)
