"""Linear and convolution layers whose weights are quantised at every use, with scales that stay as calibrated."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward
from lightning_polystep.functional.quantised import check_integer, quant_conv2d, quant_linear
from lightning_polystep.functional.quantisers import (
    Granularity,
    WeightFormat,
    check_weight_format,
    quantise_weight,
    weight_scale,
)
from lightning_polystep.layers.following import scales_are_frozen
from lightning_polystep.layers.quantisers import QuantActivation
from lightning_polystep.tape.pause import unrecorded


class QuantisedWeight(nn.Module):
    """What :class:`QuantLinear` and :class:`QuantConv2d` share: latent float weights, and frozen scales for them."""

    weight: Tensor
    weight_scale: Tensor | None
    weight_format: WeightFormat
    granularity: Granularity
    input_quant: QuantActivation | None
    integer: bool
    on_backward: OnBackward
    follow: bool
    # Whether the scale is a constant of the network, as that of binary weights may be, which no calibration replaces.
    scale_given: bool = False

    def calibrate_weight(self) -> None:
        """Set the scales from the weights as they are now; see :func:`~lightning_polystep.functional.weight_scale`."""
        if self.weight_format != "float":
            self.weight_scale = weight_scale(self.weight, self.weight_format, self.granularity)

    def weight_codes(self) -> Tensor:
        """Return the integer codes of the weights, whole numbers in their shape and dtype.

        Raises:
            ValueError: If the weights are float.
        """
        if self.weight_scale is None:
            raise ValueError(f"{self} has float weights, which have no codes.")
        return quantise_weight(
            self.weight, self.weight_scale, self.weight_format, on_backward=self.on_backward, name=str(self)
        )

    def follow_weight(self) -> None:
        """With ``follow``, set the scales from the weights as they are now, unless candidates are being scored."""
        # Weights of many candidates at once, as of a user's own vmap, have no one scale to remember.
        if self.follow and not scales_are_frozen() and not torch._C._functorch.is_batchedtensor(self.weight):
            with unrecorded():  # of a step's scales candidates see what the step itself has set
                self.calibrate_weight()

    def _quantise(
        self,
        weight_format: WeightFormat,
        granularity: Granularity,
        input_quant: QuantActivation | None,
        integer: bool,
        on_backward: OnBackward,
        follow: bool,
    ) -> None:
        kind = type(self).__name__
        check_weight_format(weight_format, granularity, kind)
        check_integer(integer, weight_format, input_quant is not None, kind)
        check_on_backward(on_backward, kind)
        self.weight_format = weight_format
        self.granularity = granularity
        self.input_quant = input_quant
        self.integer = integer
        self.on_backward = on_backward
        self.follow = follow
        self.register_buffer("weight_scale", None)
        self.calibrate_weight()

    def _options(self, x: Tensor) -> dict[str, Any]:
        return {
            "weight_format": self.weight_format,
            "input_format": None if self.input_quant is None else self.input_quant.format_for(x),
            "integer": self.integer,
            "on_backward": self.on_backward,
            "name": f"{type(self).__name__}({self.extra_repr()})",
        }

    def _quantised_repr(self) -> str:
        shown = f", weight_format={self.weight_format!r}"
        if self.weight_format != "float" and self.granularity != "per_channel":
            shown += f", granularity={self.granularity!r}"
        return shown + (", integer=True" if self.integer else "") + (", follow=True" if self.follow else "")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load a float layer's weights too: it has no scale, so that is set from them, as for initial weights."""
        name = f"{prefix}weight_scale"
        if self.weight_scale is not None and name not in state_dict and f"{prefix}weight" in state_dict:
            weight = state_dict[f"{prefix}weight"]
            if weight.shape == self.weight.shape:
                scale = weight_scale(weight, self.weight_format, self.granularity).to(self.weight_scale)
                state_dict[name] = self.weight_scale if self.scale_given else scale
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class QuantLinear(QuantisedWeight, nn.Linear):
    """Linear layer with quantised weights; see :func:`~lightning_polystep.functional.quant_linear`.

    The latent float weights are the parameters. The scales are buffers, set from the initial weights and then frozen
    until :meth:`calibrate_weight` or :func:`~lightning_polystep.layers.calibrate`. With ``follow`` they are set anew by
    every pass that counts, and frozen while candidates are scored. Either way a candidate changes the output unit whose
    weights it moves, and no other. The state of a float layer loads as well: scales are then set from its weights.

    Args:
        in_features: As in ``nn.Linear``.
        out_features: As there.
        bias: As there; it stays float.
        weight_format: ``"int8"`` down to ``"int2"``, ``"ternary"``, ``"binary"`` or ``"float"``.
        granularity: Whether scales are ``"per_channel"`` (of the output) or ``"per_tensor"``.
        input_quant: Quantises the input first; a layer of its own, or the one that comes before in the network.
        integer: Whether to accumulate integer codes exactly; needs ``input_quant``.
        on_backward: Whether a gradient that reaches a quantiser raises or is zero.
        follow: Whether scales follow the weights as they train; if not, weights that outgrow them are clipped.
        device: As in ``nn.Linear``.
        dtype: As there.

    Raises:
        ValueError: If an option is misspelt, or ``integer`` lacks what it needs.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantActivation, QuantLinear, calibrate
        >>> layer = QuantLinear(3, 1, bias=False, input_quant=QuantActivation(8), integer=True)
        >>> _ = torch.nn.init.constant_(layer.weight, 0.5)
        >>> calibrate(layer, [torch.tensor([[1.0, 2.0, 3.0]])], percentile=100)
        >>> layer(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3.0000]], grad_fn=<...>)
    """

    def __init__(  # noqa: PLR0913
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_format: WeightFormat = "int8",
        granularity: Granularity = "per_channel",
        input_quant: QuantActivation | None = None,
        integer: bool = False,
        on_backward: OnBackward = "raise",
        follow: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self._quantise(weight_format, granularity, input_quant, integer, on_backward, follow)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, ``(..., in_features)`` to ``(..., out_features)``."""
        self.follow_weight()
        return quant_linear(x, self.weight, self.weight_scale, self.bias, **self._options(x))

    def extra_repr(self) -> str:
        """Show the sizes and the format of the weights."""
        return nn.Linear.extra_repr(self) + self._quantised_repr()


class QuantConv2d(QuantisedWeight, nn.Conv2d):
    """2d convolution with quantised weights; see :func:`~lightning_polystep.functional.quant_conv2d`.

    Weights, scales and the last six options are those of :class:`QuantLinear`.

    Args:
        in_channels: As in ``nn.Conv2d``.
        out_channels: As there.
        kernel_size: As there.
        stride: As there.
        padding: As there.
        dilation: As there.
        groups: As there.
        bias: As there.
        padding_mode: As there.
        weight_format: ``"int8"`` down to ``"int2"``, ``"ternary"``, ``"binary"`` or ``"float"``.
        granularity: ``"per_channel"`` or ``"per_tensor"``.
        input_quant: Quantises the input first.
        integer: Whether to accumulate integer codes exactly; needs ``input_quant``.
        on_backward: Whether a gradient that reaches a quantiser raises or is zero.
        follow: Whether scales follow the weights as they train; if not, weights that outgrow them are clipped.
        device: As in ``nn.Conv2d``.
        dtype: As there.

    Raises:
        ValueError: If an option is misspelt, or ``integer`` lacks what it needs.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantConv2d
        >>> QuantConv2d(3, 8, 3, padding=1, weight_format="binary")(torch.randn(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        weight_format: WeightFormat = "int8",
        granularity: Granularity = "per_channel",
        input_quant: QuantActivation | None = None,
        integer: bool = False,
        on_backward: OnBackward = "raise",
        follow: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            cast("Any", padding_mode),
            device=device,
            dtype=dtype,
        )
        self._quantise(weight_format, granularity, input_quant, integer, on_backward, follow)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, ``(N, C, H, W)`` or ``(C, H, W)``."""
        self.follow_weight()
        options, padding = self._options(x), cast("Any", self.padding)
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return quant_conv2d(
            x,
            self.weight,
            self.weight_scale,
            self.bias,
            stride=cast("Any", self.stride),
            padding=padding,
            dilation=cast("Any", self.dilation),
            groups=self.groups,
            **options,
        )

    def extra_repr(self) -> str:
        """Show the sizes and the format of the weights."""
        return nn.Conv2d.extra_repr(self) + self._quantised_repr()
