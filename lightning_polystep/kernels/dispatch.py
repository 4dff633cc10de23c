"""Which implementation of a kernel runs: chosen by device, overridden by ``POLYSTEP_KERNELS``, never guessed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Sequence  # noqa: UP035 - see Tensors

import numba
import torch
from numba.core import event
from torch import Tensor

# The type of an operator's argument. torch 2.6 takes typing's and no other.
Tensors = Sequence[Tensor]

VARIABLE = "POLYSTEP_KERNELS"
# What each implementation runs on, and which one a device gets unless the variable says otherwise.
RUNS_ON = {"reference": "any device (plain torch, slow)", "cpu": "cpu (numba)", "triton": "cuda (Triton)"}
BY_DEVICE = {"cpu": "cpu", "cuda": "triton"}

_MOST_THREADS: int = vars(numba.config)["NUMBA_NUM_THREADS"]  # numba's own type does not know it

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """An operator with one implementation per kind of device, each a function called ``name`` in a module of its own.

    Args:
        name: Of the operator, of its folder beside this file and of the function in ``reference.py``, ``cpu.py`` and
            ``triton.py``.
    """

    name: str

    def __call__(self, *arguments: Any) -> Tensor:
        """Run the implementation for the device of the first argument."""
        choice = choose(arguments[0].device, self.name)
        # Imported at the first call: importing numba kernels or Triton costs seconds that most processes never need.
        function = getattr(import_module(f"lightning_polystep.kernels.{self.name}.{choice}"), self.name)
        if choice != "cpu":
            return function(*arguments)
        with _as_many_threads_as_torch(), _compilation_announced(self.name):
            return function(*arguments)


def choose(device: torch.device, name: str) -> str:
    """Return ``"reference"``, ``"cpu"`` or ``"triton"``.

    Args:
        device: Where the tensors are.
        name: What errors call the operator.

    Returns:
        The choice of ``POLYSTEP_KERNELS`` if it is set, else the implementation for ``device``.

    Raises:
        RuntimeError: If that one does not exist or cannot run here; it lists the choices.
    """
    asked = os.environ.get(VARIABLE, "")
    choice = asked or BY_DEVICE.get(device.type, "")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    able = {"reference": True, "cpu": device.type == "cpu", "triton": device.type == "cuda" or interpreted}
    if able.get(choice, False):
        return choice
    problem = f"{VARIABLE}={asked} cannot run on" if asked in RUNS_ON else f"{VARIABLE}={asked} is no kernel for"
    if not asked:
        problem = "there is no kernel for"
    choices = ", ".join(f"{key}: {where}" for key, where in RUNS_ON.items())
    raise RuntimeError(f"{name}: {problem} device {device.type!r}; set {VARIABLE} to one of {choices}.")


@contextmanager
def _as_many_threads_as_torch() -> Iterator[None]:
    """One knob for both: ``torch.set_num_threads``. Results do not depend on it."""
    threads = torch.get_num_threads()  # before numba starts, and sets OpenMP's number
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, _MOST_THREADS)))
    try:
        yield
    finally:
        numba.set_num_threads(before)
        torch.set_num_threads(threads)  # both may have OpenMP's number, which numba has just set


class _Announcement(event.Listener):
    """Says once per operator that numba compiles; a kernel found in the cache on disk raises no such event."""

    announced: set[str] = set()  # noqa: RUF012 - shared by all on purpose

    def __init__(self, name: str) -> None:
        self.name = name

    def on_start(self, event: event.Event) -> None:
        if self.name not in self.announced and os.environ.get("LOCAL_RANK", "0") == "0":
            self.announced.add(self.name)
            _logger.warning("compiling %s for this processor, once: usually less than a minute", self.name)

    def on_end(self, event: event.Event) -> None:
        pass


@contextmanager
def _compilation_announced(name: str) -> Iterator[None]:
    with event.install_listener("numba:compile", _Announcement(name)):
        yield
