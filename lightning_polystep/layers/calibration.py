"""Set the frozen scales of quantised layers from the weights, and from what the activations are on some batches."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.quantisers import NotCalibratedError, QuantActivation

# Enough values for a percentile, over all batches together.
_MOST_VALUES = 2**20


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    percentile: float = 99.9,
    max_batches: int = 10,
    forward: Callable[[Any], Any] | None = None,
    keep_given: bool = False,
) -> None:
    """Set every weight scale from the weights, then every activation scale from what it sees, in order.

    The model runs in evaluation mode up to the first quantiser without a scale, on all batches; that quantiser gets
    the percentile of its inputs; and again, until all have one. So each sees its inputs as the quantised layers before
    it make them. Scales that the model had before are replaced, except where the model does not reach the quantiser.

    Args:
        model: Holds :class:`QuantLinear`, :class:`QuantConv2d` and :class:`QuantActivation` layers anywhere.
        batches: A data loader or any iterable; of a tuple or list, the model gets the first element.
        percentile: Share of an activation's values, in percent, that are not clipped.
        max_batches: How many batches to use.
        forward: Runs the model on a batch, if not ``model(inputs)``.
        keep_given: Whether quantisers that were made with a scale (that of pixels, say) keep it, and so weights with a
            constant one.

    Raises:
        ValueError: If there is an activation to calibrate and no batch, or ``percentile`` is out of range.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantActivation, QuantLinear, calibrate
        >>> network = torch.nn.Sequential(QuantLinear(4, 8), QuantActivation(bits=4), QuantLinear(8, 3))
        >>> calibrate(network, [torch.randn(32, 4)])
        >>> len(network[1].levels(torch.float32))
        16

    Source:
        Percentile calibration as in Brevitas and in Wu et al. 2020, arXiv 2004.09602.
    """
    for module in model.modules():
        if isinstance(module, QuantisedWeight) and not (keep_given and module.scale_given):
            module.calibrate_weight()
    quantisers = [module for module in model.modules() if isinstance(module, QuantActivation)]
    quantisers = [quantiser for quantiser in quantisers if not (keep_given and quantiser.scale_given)]
    kept = list(islice(batches, max_batches)) if quantisers else []
    if quantisers and not kept:
        raise ValueError("calibrate: there is no batch to calibrate the activations on.")
    run = forward or (lambda batch: model(_inputs(batch, model)))
    training = {module: module.training for module in model.modules()}
    before = {quantiser: quantiser.scale for quantiser in quantisers}
    for quantiser in quantisers:
        quantiser.forget_scale()
    model.eval()
    try:
        with torch.no_grad():
            while reached := _first_without_scale(run, kept):
                for quantiser, values in reached.items():
                    quantiser.calibrate(torch.cat(values), percentile)
    finally:
        for module, mode in training.items():
            module.training = mode
        for quantiser, scale in before.items():
            if not quantiser.calibrated:
                quantiser.scale = scale


def _first_without_scale(run: Callable[[Any], Any], batches: list[Any]) -> dict[QuantActivation, list[Tensor]]:
    """Run every batch up to the first quantiser without a scale; return what those quantisers were given."""
    reached: dict[QuantActivation, list[Tensor]] = {}
    for batch in batches:
        try:
            run(batch)
        except NotCalibratedError as stop:
            values = stop.inputs.detach().flatten()
            stride = max(1, len(values) * len(batches) // _MOST_VALUES)
            reached.setdefault(stop.layer, []).append(values[::stride])
    return reached


def _inputs(batch: Any, model: nn.Module) -> Any:
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    parameter = next(model.parameters(), None)
    return inputs.to(parameter.device) if isinstance(inputs, Tensor) and parameter is not None else inputs
