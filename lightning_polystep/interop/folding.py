"""Make batch normalisation part of the layer in front of it."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from lightning_polystep.functional.quantisers import per_output
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.interop.snntorch_conversion import ConversionError, leaves_of
from lightning_polystep.layers.heaviside import Heaviside
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.sign import Sign

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# They ask only on which side of 0 their input is, so that a positive factor in front of them is none.
_SIGNS = (Sign, Heaviside)


def fold_batch_norm(network: nn.Module) -> nn.Sequential:
    r"""Return a copy of an ``nn.Sequential`` in which batch normalisation is part of the layer right in front of it.

    With f the scale of the normalisation, :math:`\gamma / \sqrt{v + \epsilon}`, and m, v its running mean and variance,

    .. math::
        W' = f W, \qquad b' = f (b - m) + \beta

    and before a :class:`~lightning_polystep.layers.Sign` or ``Heaviside`` a threshold is all that is left of it,

    .. math::
        W' = \operatorname{sign}(f) W, \qquad b' = \operatorname{sign}(f) (b - m + \beta / f)

    so that binary weights keep their one scale. Elsewhere a quantised layer gets one scale per output; codes of weights
    are the same, up to sign, bit for bit (a scale per tensor that follows does so per output from then on, with finer
    codes). Outputs are those of evaluation mode up to rounding; in training the statistics of batches are gone.

    Args:
        network: Linear or convolution layers of torch or this package, with batch normalisation behind them.

    Returns:
        The copy. Normalisation that is not right behind such a layer stays, with a warning.

    Raises:
        ConversionError: If a normalisation multiplies a unit with binary weights by 0, which they cannot express; if a
            module in the row has a forward of its own.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
        >>> fold_batch_norm(network)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
        )

    Source:
        Jacob et al. 2018, arXiv 1712.05877, section 3.2; Umuroglu et al. 2017, arXiv 1612.07119, section 4.2.
    """
    leaves = leaves_of(deepcopy(network))
    kept: list[nn.Module] = []
    for place, leaf in enumerate(leaves):
        layer = kept[-1] if kept else None
        if not isinstance(leaf, _NORMS):
            kept.append(leaf)
        elif isinstance(layer, _WEIGHTED) and not comes_from(layer, "brevitas") and leaf.running_mean is not None:
            following = leaves[place + 1] if place + 1 < len(leaves) else None
            with torch.no_grad():
                _fold(layer, leaf, before_sign=isinstance(following, _SIGNS))
        else:
            warnings.warn(
                f"{leaf} stays: only batch normalisation with running statistics, right behind a Linear or convolution "
                f"layer of torch or this package, can become part of it, and this one is behind {layer}.",
                stacklevel=2,
            )
            kept.append(leaf)
    folded = nn.Sequential(*kept)
    folded.training = network.training
    return folded


def _fold(layer: nn.Module, norm: nn.Module, *, before_sign: bool) -> None:
    weighted, mean, variance = cast("nn.Linear", layer), cast("Tensor", norm.running_mean), norm.running_var
    weight, bias = weighted.weight, weighted.bias
    deviation = (cast("Tensor", variance) + cast("float", norm.eps)).sqrt()
    gain = (torch.ones_like(mean) if norm.weight is None else cast("Tensor", norm.weight)) / deviation
    offset = torch.zeros_like(mean) if norm.bias is None else cast("Tensor", norm.bias)
    centred = -mean if bias is None else bias - mean
    if before_sign and bool((gain != 0).all()):
        factor = gain.sign()
        threshold = factor * (centred + offset / gain)
    else:
        factor, threshold = gain, gain * centred + offset
    if isinstance(layer, QuantisedWeight) and layer.weight_scale is not None:
        _scale_quantised(layer, factor)
    else:
        weight.mul_(per_output(factor, weight.ndim, weight.dtype))
    if bias is None:
        weighted.bias = nn.Parameter(threshold.to(weight))
    else:
        bias.copy_(threshold)


def _scale_quantised(layer: QuantisedWeight, factor: Tensor) -> None:
    """Multiply the rows of a quantised weight such that their codes change by a sign at the most."""
    weight, scale, binary = layer.weight, cast("Tensor", layer.weight_scale), layer.weight_format == "binary"
    sign = factor.sign()
    if binary and bool((sign == 0).any()):
        raise ConversionError(
            "Batch normalisation multiplies a unit by 0, and binary weights cannot be 0: remove such units, or leave "
            "the normalisation where it is."
        )
    codes = layer.weight_codes() * per_output(sign, weight.ndim, weight.dtype)
    if bool((factor.abs() != 1).any()):
        layer.weight_scale = scale * torch.where(factor == 0, 1.0, factor.abs()).to(scale)
        layer.granularity = "per_channel"
    scale = per_output(cast("Tensor", layer.weight_scale), weight.ndim, weight.dtype)
    weight.mul_(per_output(factor, weight.ndim, weight.dtype))
    # Rounding may have carried a weight over a tie, and a binary weight of 0 counts as positive whatever its sign.
    weight.copy_(torch.where(layer.weight_codes() == codes, weight, codes * scale))
