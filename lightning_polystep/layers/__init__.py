"""Hard layers: stateless modules around the functions of the same name in :mod:`lightning_polystep.functional`."""

from lightning_polystep.layers.lif import LIF
from lightning_polystep.layers.readout import LastMembrane, SpikeCount, SpikeRate
from lightning_polystep.layers.sliced import Sliced

__all__ = ["LIF", "LastMembrane", "Sliced", "SpikeCount", "SpikeRate"]
