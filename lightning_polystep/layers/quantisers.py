"""A layer that quantises activations, with a scale that stays as it was calibrated."""

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.quantisers import (
    ActivationFormat,
    activation_codes,
    activation_scale,
    check_activation_options,
    code_range,
    quant_activation,
)
from lightning_polystep.layers.step_function import StepFunction


class NotCalibratedError(RuntimeError):
    """An activation quantiser was used before it had a scale.

    Args:
        layer: The quantiser.
        inputs: What it was to quantise.
    """

    def __init__(self, layer: "QuantActivation", inputs: Tensor) -> None:
        super().__init__(
            f"{layer} has no scale yet: calibrate first, with lightning_polystep.layers.calibrate(model, batches), "
            "or give it a scale."
        )
        self.layer = layer
        self.inputs = inputs


class QuantActivation(StepFunction):
    """Round activations to a few multiples of a frozen scale; unsigned, it is a quantised ReLU.

    The equations are those of :func:`~lightning_polystep.functional.quant_activation`, of which this is the module.
    The scale is a buffer, empty until it is given, calibrated (:func:`~lightning_polystep.layers.calibrate`) or loaded.

    Args:
        bits: 1 to 8; at least 2 when signed.
        signed: Whether codes can be negative.
        scale: Step between two outputs; None to calibrate it.
        narrow_range: Whether signed codes are symmetric; if not, there is one more below, as in two's complement.
        on_backward: Whether a gradient raises or is zero.
        follow: Whether the scale follows what the layer is given while PolyStep trains: after each commit pass a tenth
            of the way to the percentile 99.9 of its inputs.

    Raises:
        ValueError: If ``bits`` or ``scale`` is out of range or ``on_backward`` is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import QuantActivation
        >>> QuantActivation(bits=2, scale=0.5)(torch.tensor([-1.0, 0.3, 0.8, 9.0]))
        tensor([0.0000, 0.5000, 1.0000, 1.5000])
    """

    scale: Tensor
    next_scale: Tensor

    def __init__(
        self,
        bits: int = 8,
        signed: bool = False,
        *,
        scale: float | None = None,
        narrow_range: bool = True,
        on_backward: OnBackward = "raise",
        follow: bool = False,
    ) -> None:
        super().__init__()
        check_activation_options(bits, signed, on_backward, "QuantActivation")
        if isinstance(scale, torch.nn.Parameter):
            raise ValueError(
                "QuantActivation: scale is a buffer, which training leaves alone, and not a parameter: give a number, "
                "or None to calibrate it."
            )
        if scale is not None and not scale > 0:
            raise ValueError(f"QuantActivation: scale must be above 0, or None to calibrate it, got {scale}.")
        self.bits = bits
        self.signed = signed
        self.narrow_range = narrow_range
        self.on_backward = on_backward
        self.follow = follow
        self.scale_given = scale is not None
        # Empty instead of None, so that a checkpoint always names it.
        self.register_buffer("scale", torch.empty(0) if scale is None else torch.tensor(float(scale)))
        # Where the scale is to move at the next step, 0 for nowhere: in checkpoints, so that a resumed run moves alike.
        if follow:
            self.register_buffer("next_scale", torch.zeros(()))

    @property
    def calibrated(self) -> bool:
        """Whether there is a scale."""
        return self.scale.ndim == 0

    def forward(self, x: Tensor) -> Tensor:
        """Quantise, in the shape and dtype of ``x``."""
        return quant_activation(x, *self.format_for(x), on_backward=self.on_backward, name=str(self))

    def codes(self, x: Tensor) -> Tensor:
        """Return the integer codes, whole numbers in the shape and dtype of ``x``."""
        return activation_codes(x, *self.format_for(x), on_backward=self.on_backward, name=str(self))

    def format_for(self, x: Tensor) -> ActivationFormat:
        """Return the scale, bits and sign with which ``x`` is quantised.

        Raises:
            NotCalibratedError: If there is no scale yet.
        """
        if not self.calibrated:
            raise NotCalibratedError(self, x)
        return ActivationFormat(self.scale, self.bits, self.signed, self.narrow_range)

    def calibrate(self, values: Tensor, percentile: float = 99.9) -> None:
        """Set the scale from a sample of inputs; see :func:`~lightning_polystep.functional.activation_scale`."""
        self.scale = activation_scale(values, self.bits, self.signed, percentile).to(self.scale)

    def forget_scale(self) -> None:
        """Return to the state before calibration."""
        self.scale = self.scale.new_empty(0)

    def levels(self, dtype: torch.dtype) -> Tensor:
        """Return the multiples of the scale; two that round to the same number in ``dtype`` count once."""
        low, high = code_range(self.bits, self.signed, self.narrow_range)
        format_ = self.format_for(self.scale)
        return torch.unique(torch.arange(low, high + 1, device=self.scale.device).to(dtype) * format_.scale.to(dtype))

    def extra_repr(self) -> str:
        """Show the codes, and whether there is a scale."""
        shown = f"bits={self.bits}, signed={self.signed}" + ("" if self.narrow_range else ", narrow_range=False")
        shown += ", follow=True" if self.follow else ""
        return shown + ("" if self.calibrated else ", not calibrated")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        given = state_dict.get(f"{prefix}scale")
        if isinstance(given, Tensor) and given.shape in (torch.Size([]), torch.Size([0])):
            self.scale = self.scale.new_empty(given.shape)
        if given is None and (self.scale_given or not self.calibrated):
            # The state of a float network. A scale that was given stays, none stays none; one that was calibrated on
            # other weights would not fit, so that its key is missed.
            state_dict[f"{prefix}scale"] = self.scale
        if self.follow:
            state_dict.setdefault(f"{prefix}next_scale", torch.zeros(()))
        else:
            state_dict.pop(f"{prefix}next_scale", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
