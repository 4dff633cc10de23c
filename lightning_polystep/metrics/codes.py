"""Which weight codes of a model a training step changed."""

from collections.abc import Collection

from torch import Tensor, nn

from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.metrics.quantised import FlipRate


def weight_codes(model: nn.Module, parameters: Collection[Tensor] | None = None) -> dict[str, Tensor]:
    """Return the integer weight codes of every quantised layer as they are now.

    Args:
        model: The model.
        parameters: Only layers whose weight is among these; all by default.

    Returns:
        Whole numbers in the shape of each weight, by the name of the layer.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantLinear
        >>> from lightning_polystep.metrics.codes import weight_codes
        >>> weight_codes(torch.nn.Sequential(QuantLinear(4, 2), torch.nn.Linear(2, 1)))["0"].shape
        torch.Size([2, 4])
    """
    chosen = None if parameters is None else {id(parameter) for parameter in parameters}
    return {
        name: layer.weight_codes().detach()
        for name, layer in model.named_modules()
        if isinstance(layer, QuantisedWeight)
        and layer.weight_scale is not None
        and (chosen is None or id(layer.weight) in chosen)
    }


def flip_rates(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the :class:`~lightning_polystep.metrics.FlipRate` of each layer that is in both.

    Args:
        before: What :func:`weight_codes` returned before a step.
        after: What it returned after it.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics.codes import flip_rates
        >>> flip_rates({"0": torch.tensor([1.0, 2.0])}, {"0": torch.tensor([1.0, 3.0])})
        {'0': tensor(0.5000)}
    """
    rates = {}
    for name in before.keys() & after.keys():
        flips = FlipRate().to(before[name].device)
        flips.update(before[name], after[name])
        rates[name] = flips.compute()
    return rates
