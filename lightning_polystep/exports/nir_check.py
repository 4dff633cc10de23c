"""Run what readers make of a NIR graph, and compare it with the network spike for spike."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_polystep.exports.chain import chain_of
from lightning_polystep.exports.nir_reader import from_nir
from lightning_polystep.exports.parity import Parity, compare, compare_closely
from lightning_polystep.layers import LIF, TimeFirst

if TYPE_CHECKING:
    import nir


def check_nir(network: nn.Module, graph: nir.NIRGraph, inputs: Tensor) -> list[Parity]:
    """Compare a network with what this package, and snnTorch where it is installed, read from its graph.

    Args:
        network: As given to :func:`~lightning_polystep.exports.to_nir`.
        graph: As it returned it, or as ``nir.read`` returns it.
        inputs: A batch as the network takes it.

    Returns:
        For each reader: the spikes of each layer of neurons, and the output.

    Example:
        >>> from lightning_polystep.exports import to_nir
        >>> from lightning_polystep.layers import SpikeCount
        >>> network = nn.Sequential(nn.Linear(4, 3), LIF(0.9, num_steps=5, spike_on="gt"), SpikeCount())
        >>> found = check_nir(network, to_nir(network, (4,)), torch.rand(2, 4))
        >>> all(parity.unequal == 0 for parity in found)
        True
    """
    network = network.eval()
    names = [link.name for link in chain_of(network) if type(link.layer) is LIF]
    with torch.no_grad():
        with listening(network, names) as ours:
            output = network(inputs)
        back = from_nir(graph).eval()
        read = [link.name for link in chain_of(back) if type(link.layer) is LIF]
        with listening(back, read) as theirs:
            returned = back(_as_steps(network, inputs))
    found = [
        compare(f"spikes of layer {name} as read back", torch.cat(ours[name], 1), torch.cat(theirs[again], 1))
        for name, again in zip(names, read, strict=True)
    ]
    found.append(compare_closely("output as read back", output, returned))
    if importlib.util.find_spec("snntorch") is not None:
        found += _check_snntorch(graph, inputs, network, {name: torch.cat(spikes, 1) for name, spikes in ours.items()})
    return found


def _check_snntorch(graph: nir.NIRGraph, inputs: Tensor, network: nn.Module, ours: dict[str, Tensor]) -> list[Parity]:
    from snntorch import utils
    from snntorch.import_nir import import_from_nir

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
            read = import_from_nir(graph)
    except AssertionError as error:
        warnings.warn(f"snnTorch's reader does not take this graph ({error}), so it is not compared.", stacklevel=3)
        return []
    for part in read.modules():
        if isinstance(part, nn.Flatten):  # NIR knows no batches. One by one, samples would be multiplied otherwise.
            part.start_dim += 1
    nodes = {name: f"lif_{name.replace('.', '_')}" for name in ours}
    steps = graph.metadata.get("num_steps")
    with torch.no_grad(), listening(read, list(nodes.values())) as heard:
        utils.reset(read)
        run_steps(read, _as_steps(network, inputs), None if steps is None else int(steps))
    return [
        compare(f"spikes of layer {name} in snnTorch", spikes, torch.stack(heard[nodes[name]]))
        for name, spikes in ours.items()
    ]


def run_steps(reader: Callable[..., Any], inputs: Tensor, num_steps: int | None) -> Tensor:
    """Run a network that ``nirtorch`` has built, step by step from rest.

    Args:
        reader: From an input, and the state that it returned at the step before, to an output, alone or with a state.
        inputs: Time first, or constant; without the axis of the batch where its Flatten does not know it.
        num_steps: T, for a constant input.

    Returns:
        Outputs, time first.
    """
    state, outputs = None, list[Tensor]()
    for current in inputs.unbind() if num_steps is None else [inputs] * num_steps:
        output = reader(current) if state is None else reader(current, state)
        if isinstance(output, tuple):
            output, state = output
        outputs.append(output)
    return torch.stack(outputs)


def _as_steps(network: nn.Module, inputs: Tensor) -> Tensor:
    """Bring inputs into the order of steps, where the network itself does so first."""
    return inputs.transpose(0, 1) if type(chain_of(network)[0].layer) is TimeFirst else inputs


@contextmanager
def listening(network: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what layers return while the body runs, in the order of the calls; a ``Sliced`` runs its batch in parts.

    Args:
        network: Holds the layers.
        names: Of the layers, each at the end of a path.
    """
    heard: dict[str, list[Tensor]] = {name: [] for name in names}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _layer, _inputs, output: heard[name].append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for name in names:
            parts = [part for path, part in network.named_modules() if path == name or path.endswith(f".{name}")]
            hooks.callback(parts[0].register_forward_hook(keeper(name)).remove)
        yield heard
