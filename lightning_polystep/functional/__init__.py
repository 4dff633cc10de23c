"""Stateless functions; every layer in :mod:`lightning_polystep.layers` is a thin module around its twin here."""

from lightning_polystep.functional.attention import AttentionOutput, argmax_attention, slot_argmax_attention
from lightning_polystep.functional.heaviside import heaviside
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.moe import MoEOutput, Routing, hard_moe
from lightning_polystep.functional.neurons import LIFOutput
from lightning_polystep.functional.non_differentiable import (
    NonDifferentiableError,
    gradient_rule,
    non_differentiable,
    true_gradients,
)
from lightning_polystep.functional.quantised import integer_conv2d, integer_linear, quant_conv2d, quant_linear
from lightning_polystep.functional.quantisers import (
    ActivationFormat,
    activation_codes,
    activation_scale,
    quant_activation,
    quantise_weight,
    weight_scale,
)
from lightning_polystep.functional.readout import last_membrane, spike_count, spike_rate
from lightning_polystep.functional.recurrent import rlif
from lightning_polystep.functional.sign import sign
from lightning_polystep.functional.staircase import staircase
from lightning_polystep.functional.synaptic import synaptic

__all__ = [
    "ActivationFormat",
    "AttentionOutput",
    "LIFOutput",
    "MoEOutput",
    "NonDifferentiableError",
    "Routing",
    "activation_codes",
    "activation_scale",
    "argmax_attention",
    "gradient_rule",
    "hard_moe",
    "heaviside",
    "integer_conv2d",
    "integer_linear",
    "last_membrane",
    "lif",
    "non_differentiable",
    "quant_activation",
    "quant_conv2d",
    "quant_linear",
    "quantise_weight",
    "rlif",
    "sign",
    "slot_argmax_attention",
    "spike_count",
    "spike_rate",
    "staircase",
    "synaptic",
    "true_gradients",
    "weight_scale",
]
