r"""Flips that leave a unit's mean pre-activation where it was, because the bias moves along."""

from __future__ import annotations

from torch import Tensor

from lightning_polystep.functional.quantisers import per_output, quantise_weight
from lightning_polystep.layers.quantised import QuantisedWeight


def bias_shifts(site: QuantisedWeight, rows: Tensor, before: Tensor, after: Tensor, centre: Tensor) -> Tensor:
    r"""Return by how much the biases of some units move when their latent weights do.

    .. math:: \Delta b_i = -\sum_d m_d \, (\hat w_{id}(\text{after}) - \hat w_{id}(\text{before}))

    with :math:`\hat w` what latent weights act as: a shift of the pre-activation :math:`\sum_d \hat w_{id} x_d` becomes
    one of :math:`\sum_d \hat w_{id} (x_d - m_d)`, whose mean is 0 where m is the mean of the inputs.

    Args:
        site: The layer.
        rows: Its units, (R,).
        before: Their latent weights, (R, D).
        after: Their latent weights later, (R, D).
        centre: m, (D,).

    Returns:
        Shape (R,).

    Example:
        Both weights change their signs; the second input is 1 on the mean.

        >>> import torch
        >>> from lightning_polystep.layers import QuantLinear
        >>> layer, unit = QuantLinear(2, 1, weight_format="binary"), torch.tensor([0])
        >>> layer.weight_scale = torch.ones(1)
        >>> latent, mean = torch.tensor([[-0.5, 0.5]]), torch.tensor([0.0, 1.0])
        >>> bias_shifts(layer, unit, latent, -latent, mean)
        tensor([2.])
    """
    assert site.weight_scale is not None
    scale = site.weight_scale if site.weight_scale.ndim == 0 else site.weight_scale[rows]
    codes = [quantise_weight(latent, scale, site.weight_format, on_backward="zero") for latent in (before, after)]
    # Codes are small whole numbers, and so exact.
    return ((codes[0] - codes[1]) * per_output(scale, 2, before.dtype)) @ centre
