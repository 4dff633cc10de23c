"""Networks whose layers are silent at first, with and without first weights from data: ``python -m benchmarks.silent``.

Spiking networks on scikit-learn's digits, 64-32-10, ten steps of the image as a current, class scores by spike counts,
each with its library's own first weights: hard LIF neurons of this package with thresholds of 5, 10 and 50, and the
default neurons of other libraries, where they are installed. Each is trained for as many processor seconds as it is,
and after ``lightning_polystep.initialise`` on one batch, with the parameter groups that it returns; the table shows
what the first step warned of, the test accuracy of both, and what the cure took. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Task, finish, make_parser, prepare, show
from datamodules import Digits
from lightning_polystep import Engine, PolyStep, initialise
from lightning_polystep.first_weights import FirstWeights
from lightning_polystep.layers import LIF, SpikeCount

STEPS, HIDDEN, PIXELS, CLASSES, BATCH = 10, 32, 64, 10, 256


class Stepwise(nn.Module):
    """Two layers of a library's neurons, run step by step, as its users write it.

    Args:
        neuron: Makes the neurons of a layer.
        run: Gives the spikes of one layer at one step, and its state, from the current and the state before.
        reset: Clears what the neurons themselves keep, before an image.
    """

    def __init__(
        self,
        neuron: Callable[[], nn.Module],
        run: Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]],
        reset: Callable[[nn.Module], object] = lambda _network: None,
    ) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), neuron()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), neuron()
        self._run, self._reset = run, reset

    def forward(self, images: Tensor) -> Tensor:
        """Return spike counts, (N, classes)."""
        self._reset(self)
        images = images.flatten(1)
        hidden = output = None
        count = images.new_zeros(len(images), CLASSES)
        for _ in range(STEPS):
            spikes, hidden = self._run(self.lif1, self.fc1(images), hidden)
            spikes, output = self._run(self.lif2, self.fc2(spikes), output)
            count = count + spikes
        return count


def ours(threshold: float) -> nn.Module:
    """Return a network of this package's neurons.

    Args:
        threshold: At which a neuron fires.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(PIXELS, HIDDEN),
        LIF(0.9, threshold, num_steps=STEPS),
        nn.Linear(HIDDEN, CLASSES),
        LIF(0.9, threshold),
        SpikeCount(),
    )


def saturated() -> nn.Module:
    """Return a network whose neurons all fire at every step, because of their biases."""
    network = ours(1.0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(20.0)
    return network


def lapicque() -> nn.Module:
    """Return a network of snnTorch's Lapicque with its default resistance, which hardly charges in ten steps."""
    snntorch = importlib.import_module("snntorch")

    def run(neuron: nn.Module, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, membrane = neuron(current, torch.zeros_like(current) if state is None else state)
        return spikes, membrane

    return Stepwise(lambda: snntorch.Lapicque(0.9), run)


def norse() -> nn.Module:
    """Return a network of Norse's LIFCell."""
    library = importlib.import_module("norse.torch")
    return Stepwise(library.LIFCell, lambda neuron, current, state: neuron(current, state))


def spikingjelly() -> nn.Module:
    """Return a network of SpikingJelly's LIFNode."""
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    return Stepwise(neuron.LIFNode, lambda layer, current, _state: (layer(current), None), functional.reset_net)


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "LIF, threshold 5": ("lightning_polystep", lambda: ours(5.0)),
    "LIF, threshold 10": ("lightning_polystep", lambda: ours(10.0)),
    "LIF, threshold 50": ("lightning_polystep", lambda: ours(50.0)),
    "LIF, biases of 20": ("lightning_polystep", saturated),
    "snntorch.Lapicque(0.9)": ("snntorch", lapicque),
    "norse LIFCell": ("norse", norse),
    "spikingjelly LIFNode": ("spikingjelly", spikingjelly),
}


def train(
    network: nn.Module,
    first: FirstWeights | None,
    data: Digits,
    seconds: float,
    steps: int,
    candidates: int | None,
    seed: int,
) -> dict[str, Any]:
    """Train for some processor seconds, of which compiling kernels is none.

    Args:
        network: To be trained, in place.
        first: What it was initialised by; None if it was not.
        data: The digits.
        seconds: Of the processor, at the most.
        steps: At the most.
        candidates: Per step, outside of a stack; None for as many as usual.
        seed: Of the optimizer.
    """
    images, labels = data.train_set.__getitems__(range(len(data.train_set)))
    # Another engine and copy, so that kernels are compiled and loaded.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _steps(copy.deepcopy(network), None, candidates, seed)(images[:16], labels[:16])
    step, draw = _steps(network, first, candidates, seed), torch.Generator().manual_seed(seed)
    done, start, warned = 0, time.process_time(), []
    while done < steps and time.process_time() - start < seconds:
        chosen = torch.randperm(len(images), generator=draw)[:BATCH]
        with warnings.catch_warnings(record=True, action="always") as caught:
            step(images[chosen], labels[chosen])
        warned += [(done, str(each.message)) for each in caught if "are silent" in str(each.message)]
        done += 1
    spent = time.process_time() - start
    test, expected = data.test_set.__getitems__(range(len(data.test_set)))
    with torch.no_grad():
        right = float((network(test).argmax(-1) == expected).double().mean())
    return {"steps": done, "seconds": spent, "test accuracy": right, "warned": warned}


def _steps(
    network: nn.Module, first: FirstWeights | None, candidates: int | None, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    task = Task(network)
    optimizer = PolyStep(network.parameters() if first is None else first.groups(), lr=0.1, seed=seed)
    stack = isinstance(network, nn.Sequential)
    engine = Engine(task, optimizer, max_candidates=None if stack else candidates, announce=None)
    return lambda images, labels: engine.step(lambda: task(images, labels))


def compare(options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train every network that can be built, as it is and cured.

    Args:
        options: Of the command line.
    """
    data = Digits()
    data.setup()
    batch = data.train_set.__getitems__(range(BATCH))[0]
    for name in options.nets:
        library, build = NETWORKS[name]
        if importlib.util.find_spec(library) is None:
            continue
        torch.manual_seed(options.seed)
        network = build()
        cured, start = copy.deepcopy(network), time.process_time()
        first = initialise(cured, batch)
        took = time.process_time() - start
        settings = (data, options.seconds, options.max_steps, options.candidates, options.seed)
        yield (
            name,
            {
                "as it is": train(network, None, *settings),
                "cured": train(cured, first, *settings),
                "gains": first,
                "radii": first.radii(),
                "seconds of the cure": took,
            },
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Of the command line.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of the processor, for each training")
    parser.add_argument("--max-steps", type=int, default=400)
    parser.add_argument("--candidates", type=int, help="per step, of networks that are not a stack (default: as usual)")
    parser.add_argument("--nets", nargs="+", metavar="NAME", choices=list(NETWORKS), default=list(NETWORKS))
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.max_steps, options.candidates = 60.0, 2, 20
    prepare(options)
    results = dict(compare(options))
    rows = [
        [
            name,
            "; ".join(f"step {step}: {text.split('are silent: ')[1].split('. Give')[0]}" for step, text in warned)
            if (warned := each["as it is"]["warned"])
            else "-",
            *[f"{100 * each[kind]['test accuracy']:.1f} ({each[kind]['steps']})" for kind in ("as it is", "cured")],
            f"{each['seconds of the cure']:.2f}",
            "yes" if each["cured"]["warned"] else "no",
        ]
        for name, each in results.items()
    ]
    show(
        f"Silent networks, test accuracy in % (and steps) after {options.seconds:g} processor seconds",
        ["network", "warned in the first steps", "as it is", "initialised", "s of initialise", "then warned"],
        rows,
    )
    finish("silent", options, results)


if __name__ == "__main__":
    main()
