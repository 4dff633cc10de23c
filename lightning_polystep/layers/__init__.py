"""Hard layers: stateless modules around the functions of the same name in :mod:`lightning_polystep.functional`."""

from lightning_polystep.layers.attention import ArgmaxAttention, SlotArgmaxAttention
from lightning_polystep.layers.calibration import calibrate
from lightning_polystep.layers.heaviside import Heaviside
from lightning_polystep.layers.lif import LIF
from lightning_polystep.layers.moe import HardMoE
from lightning_polystep.layers.over_time import MeanOverTime, OverTime
from lightning_polystep.layers.quantised import QuantConv2d, QuantLinear
from lightning_polystep.layers.quantisers import NotCalibratedError, QuantActivation
from lightning_polystep.layers.readout import LastMembrane, SpikeCount, SpikeRate
from lightning_polystep.layers.recurrent import RLIF
from lightning_polystep.layers.sign import Sign
from lightning_polystep.layers.sliced import Sliced
from lightning_polystep.layers.staircase import Staircase
from lightning_polystep.layers.step_function import StepFunction
from lightning_polystep.layers.synaptic import Synaptic
from lightning_polystep.layers.time_first import TimeFirst

__all__ = [
    "LIF",
    "RLIF",
    "ArgmaxAttention",
    "HardMoE",
    "Heaviside",
    "LastMembrane",
    "MeanOverTime",
    "NotCalibratedError",
    "OverTime",
    "QuantActivation",
    "QuantConv2d",
    "QuantLinear",
    "Sign",
    "Sliced",
    "SlotArgmaxAttention",
    "SpikeCount",
    "SpikeRate",
    "Staircase",
    "StepFunction",
    "Synaptic",
    "TimeFirst",
    "calibrate",
]
