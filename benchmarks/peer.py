"""The gradient-free opponent: polystep 1.1.0, the authors' implementation, as their own spiking runs configure it.

An optional package (``pip install -e ".[bench]"``), used through its public interface alone. Their runner for the
hard LIF network (``experiments/runners/run_elevation.py``, "snn"): HybridSubspace of rank 4, absorbed every 20 steps,
simplex of particles of 8 coordinates, softmax, epsilon 0.5, step radius 2, probe radius 1, biased rotation, batch 512.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.layers import LIF

VERSION = "1.1.0"
BATCH = 512
# Their runs on a GPU use 1024 candidates at once. On a CPU fewer fit its caches better: the fastest is used.
CHUNKS = (16, 64, 1024)
_VERTICES = 9  # of a simplex in 8 dimensions
SETTINGS: dict[str, Any] = {
    "polytope_type": "simplex",
    "epsilon": 0.5,
    "step_radius": 2.0,
    "probe_radius": 1.0,
    "num_probe": 1,
    "subspace_particle_dim": 8,
    "solver": "softmax",
    "biased_rotation": True,
}
SUBSPACE: dict[str, Any] = {
    "rank": 4,
    "rotation_mode": "random",
    "rotation_interval": 0,
    "absorb_mode": "periodic",
    "absorb_interval": 20,
}


def missing() -> str | None:
    """Return why the peer cannot run here; None when it can."""
    try:
        installed = metadata.version("polystep")
    except metadata.PackageNotFoundError:
        return f'polystep {VERSION} is not installed: pip install -e ".[bench]"'
    return None if installed == VERSION else f"polystep {installed} is installed, the peer is {VERSION}"


class PlainSpiking(nn.Module):
    """The network in plain torch operations, which the peer runs faster than layers that check their arguments.

    The current of the first layer, which is constant, is computed once per forward pass.

    Args:
        network: Flatten, then Linear and LIF in turn, then SpikeCount; the weights are copied.
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        linears = [layer for layer in network if isinstance(layer, nn.Linear)]
        neurons = [layer for layer in network if isinstance(layer, LIF)]
        self.linears = nn.ModuleList(nn.Linear(layer.in_features, layer.out_features) for layer in linears)
        for own, given in zip(self.linears, linears, strict=True):
            own.load_state_dict(given.state_dict())
        self.beta, self.threshold = float(neurons[0].beta), float(neurons[0].threshold)
        self.num_steps = neurons[0].num_steps or 1

    def forward(self, images: Tensor) -> Tensor:
        """Return spike counts of the last layer."""
        first, *others = self.linears
        drive = first(images.flatten(1))
        membranes = [torch.zeros(())] * len(self.linears)
        counts = torch.zeros(())
        for _ in range(self.num_steps):
            membranes[0], spikes = self._fire(membranes[0], drive)
            for index, linear in enumerate(others, start=1):
                membranes[index], spikes = self._fire(membranes[index], linear(spikes))
            counts = counts + spikes
        return counts

    def _fire(self, membrane: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        membrane = self.beta * membrane + current
        spikes = (membrane >= self.threshold).to(current.dtype)
        return membrane * (1 - spikes), spikes


class Peer:
    """Trains a copy of a network with polystep's optimizer.

    Args:
        network: The network, as :class:`PlainSpiking` reads it.
        criterion: The loss.
        seed: Of its draws.
        chunk: Candidates at once.
        most_coordinates: Size of its subspace at most; None is the size that its rank gives.
    """

    def __init__(
        self,
        network: nn.Sequential,
        criterion: nn.Module,
        seed: int,
        chunk: int,
        most_coordinates: int | None = None,
    ) -> None:
        from polystep import HybridSubspace, ParamLayout, PolyStepOptimizer  # noqa: PLC0415 - optional

        self.network = PlainSpiking(network)
        self.criterion = criterion
        self.chunk = chunk
        self.candidates = 0
        with _advice_hidden():
            layout = ParamLayout.from_module(self.network)
            subspace = HybridSubspace.from_layout(layout, seed=seed, max_subspace_dim=most_coordinates, **SUBSPACE)
            self.optimizer = PolyStepOptimizer(self.network, seed=seed, subspace=subspace, chunk_size=chunk, **SETTINGS)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Make one whole step, along the fastest of the package's own ways of scoring."""
        with _advice_hidden(), torch.no_grad():
            self.optimizer.step_batch(images, labels, loss_fn=self.criterion)
        self.candidates += len(self.optimizer.state.X) * _VERTICES


def fastest_chunk(
    network: nn.Sequential, batch: tuple[Tensor, Tensor], seed: int, chunks: Iterable[int] = CHUNKS
) -> tuple[int, dict[int, float]]:
    """Try the peer's chunk sizes on a small subspace, two steps each, of which the second counts.

    Args:
        network: The network.
        batch: Images and labels.
        seed: Of the draws.
        chunks: Sizes to try.

    Returns:
        The fastest, and the candidates per second of each.
    """
    smallest = sum(layer.out_features + 1 for layer in network if isinstance(layer, nn.Linear))
    speeds = {}
    for chunk in chunks:
        peer = Peer(network, nn.CrossEntropyLoss(), seed, chunk, most_coordinates=smallest + 250)
        peer.step(*batch)
        start = time.perf_counter()
        peer.step(*batch)
        speeds[chunk] = peer.candidates / 2 / (time.perf_counter() - start)
    return max(speeds, key=speeds.__getitem__), speeds


@contextmanager
def _advice_hidden() -> Iterator[None]:
    """It advises on threads, sparse tensors and its rotations, which are set here as its own runs set them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
