"""How hard networks behave, as :class:`torchmetrics.Metric` objects; ``docs/metrics.md`` says what to make of them."""

from lightning_polystep.metrics.attention import AttentionCoverage, TieRate
from lightning_polystep.metrics.counting import CountingMetric
from lightning_polystep.metrics.moe import DeadExperts, ExpertLoad, RouterMargin
from lightning_polystep.metrics.quantised import ClipFraction, CodeUtilisation, FlipRate
from lightning_polystep.metrics.spiking import DeadNeuronFraction, SaturatedNeuronFraction, SpikeRate
from lightning_polystep.metrics.staircase import LevelOccupancy
from lightning_polystep.metrics.synaptic import SynapticOperations
from lightning_polystep.metrics.watch import LayerWatch

__all__ = [
    "AttentionCoverage",
    "ClipFraction",
    "CodeUtilisation",
    "CountingMetric",
    "DeadExperts",
    "DeadNeuronFraction",
    "ExpertLoad",
    "FlipRate",
    "LayerWatch",
    "LevelOccupancy",
    "RouterMargin",
    "SaturatedNeuronFraction",
    "SpikeRate",
    "SynapticOperations",
    "TieRate",
]
