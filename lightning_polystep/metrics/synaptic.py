"""How many operations the synapses of a layer do."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.metrics.counting import CountingMetric, check_at_least

SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class SynapticOperations(CountingMetric):
    r"""Operations that a Linear or convolution layer's synapses do per sample: what event-driven hardware would do.

    A synapse works when neither its input nor its weight is zero. For a Linear layer

    .. math::
        E = \frac1N \sum_{x} \sum_i \mathbb 1[x_i \neq 0] \; \#\{o : w_{oi} \neq 0\}

    where :math:`x` runs over the rows of ``inputs``, time steps included, :math:`w` is the weight of ``layer``, after
    rounding if it is quantised, and N is the sum of ``samples``. A convolution counts likewise for each position of its
    kernel; zeros that it pads with are no input. Biases do not count. The operations of a call whose inputs are all -1,
    0 or 1 are additions (accumulates); those of any other call are multiply-accumulates. *Dense* operations are those
    of hardware that skips nothing.

    Example:
        Two samples of spikes, one step: three spikes, each with a fan-out of 5.

        >>> import torch
        >>> from lightning_polystep.metrics import SynapticOperations
        >>> operations = SynapticOperations()
        >>> operations.update(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.nn.Linear(2, 5), samples=2)
        >>> operations.compute()
        {'accumulates': tensor(7.5000), 'multiply_accumulates': tensor(0.), 'dense': tensor(10.)}

    Source:
        Yik et al. 2025, *NeuroBench*, arXiv 2304.04640: effective ACs, effective MACs and dense operations, as in
        ``neurobench.metrics.workload.SynapticOperations`` 2.1.
    """

    accumulates: Tensor
    multiply_accumulates: Tensor
    dense: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("accumulates", "multiply_accumulates", "dense", "samples"):
            self.add_count(name)

    def update(self, inputs: Tensor, layer: nn.Module, samples: int) -> None:
        """Count the operations of one call of a layer.

        Args:
            inputs: What the layer was given: ``(..., in_features)``, or as a convolution takes it. Of a quantised layer
                with ``input_quant``, what came before that.
            layer: An ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``, or a subclass such as ``QuantLinear``.
            samples: How many samples more the operations are divided by: 0 if the layer was called before for the same
                ones, at another time step or in a network of several layers.

        Raises:
            TypeError: If the layer is another.
            ValueError: If the inputs do not fit it, or ``samples`` is below 0.
        """
        name = type(self).__name__
        if not isinstance(layer, SYNAPTIC):
            raise TypeError(
                f"{name}: layer must be an nn.Linear or an nn.Conv1d, 2d or 3d, got {type(layer).__name__}."
            )
        self.samples += check_at_least(samples, 0, name, "samples")
        _check_inputs(inputs, layer, name)
        if inputs.numel() == 0:
            return
        inputs, weight = _effective(inputs.detach(), layer)
        some, every = inputs != 0, torch.ones_like(inputs, dtype=torch.bool)
        operations = _operations(some, weight != 0, layer)
        binary = bool(((inputs == 0) | (inputs.abs() == 1)).all())
        if binary:
            self.accumulates += operations
        else:
            self.multiply_accumulates += operations
        self.dense += _operations(every, torch.ones_like(weight, dtype=torch.bool), layer)

    def add_samples(self, samples: int) -> None:
        """Count samples whose operations come, or came, in calls of ``update`` with ``samples=0``.

        Args:
            samples: How many more.

        Raises:
            ValueError: If they are below 0.
        """
        self.samples += check_at_least(samples, 0, type(self).__name__, "samples")
        self._computed = None  # what update() would do: the last result is no longer true

    def compute(self) -> dict[str, Tensor]:
        """Return operations per sample by the names ``accumulates``, ``multiply_accumulates`` and ``dense``.

        NaN if there was no sample.
        """
        counts = {
            "accumulates": self.accumulates,
            "multiply_accumulates": self.multiply_accumulates,
            "dense": self.dense,
        }
        nothing = torch.full_like(self.samples, torch.nan, dtype=torch.get_default_dtype())
        return {name: torch.where(self.samples > 0, count / self.samples, nothing) for name, count in counts.items()}


def _check_inputs(inputs: Tensor, layer: nn.Module, name: str) -> None:
    if isinstance(layer, nn.Linear):
        fits = inputs.ndim >= 1 and inputs.shape[-1] == layer.in_features
        wanted = f"(..., {layer.in_features})"
    else:
        convolution = cast("nn.Conv2d", layer)
        rank = len(convolution.kernel_size)
        fits = inputs.ndim in (rank + 1, rank + 2) and inputs.shape[-rank - 1] == convolution.in_channels
        wanted = f"(N, {convolution.in_channels}, ...) with {rank} more dimensions"
    if not fits:
        raise ValueError(f"{name}: the inputs of {layer} must be {wanted}, got {tuple(inputs.shape)}.")


def _effective(inputs: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what meets at the synapses: of a quantised layer the codes, of which more are zero than of the floats."""
    weight = cast("Tensor", layer.weight).detach()
    if isinstance(layer, QuantisedWeight):
        weight = layer.weight_codes().detach() if layer.weight_scale is not None else weight
        # Codes, not their multiples of a scale: a one-bit activation is a spike, whatever it stands for.
        inputs = layer.input_quant.codes(inputs).detach() if layer.input_quant is not None else inputs
    return inputs, weight


def _operations(inputs: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
    """Return how many pairs of a True input and a True weight meet, int64."""
    if isinstance(layer, nn.Linear):
        spikes, fan_out = inputs.reshape(-1, inputs.shape[-1]).sum(0), weight.sum(0)
        return (spikes * fan_out).sum()
    return _convolved(inputs, weight, cast("nn.Conv2d", layer))


def _convolved(inputs: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    # All samples and all outputs of a group at once: only the sums count. In float64, where whole numbers below 2 ** 53
    # are exact; a device without it leaves this to the CPU.
    rank = len(layer.kernel_size)
    if inputs.device.type == "mps":
        return _convolved(inputs.cpu(), weight.cpu(), layer).to(inputs.device)
    batched = inputs if inputs.ndim == rank + 2 else inputs[None]
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        batched, padding = F.pad(batched.double(), layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    summed = batched.double().sum(0, keepdim=True)
    fan_out = weight.unflatten(0, (layer.groups, -1)).double().sum(1)
    convolution: Any = _CONVOLUTIONS[rank]
    met = convolution(summed, fan_out, None, layer.stride, padding, layer.dilation, layer.groups)
    return met.sum().round().long()
