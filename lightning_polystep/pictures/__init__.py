"""Pictures by matplotlib; ``lightning_polystep.callbacks`` draws them during a run, and ``report`` after it."""

from lightning_polystep.pictures.layers import (
    attention_choices,
    flips,
    loads,
    membrane_traces,
    spike_raster,
    spike_rates,
)
from lightning_polystep.pictures.steps import RowStep, cost_landscape, history, polytope
from lightning_polystep.pictures.style import png_of, svg_of

__all__ = [
    "RowStep",
    "attention_choices",
    "cost_landscape",
    "flips",
    "history",
    "loads",
    "membrane_traces",
    "png_of",
    "polytope",
    "spike_raster",
    "spike_rates",
    "svg_of",
]
