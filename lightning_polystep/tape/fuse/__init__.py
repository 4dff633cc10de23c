"""Score: what lies between two products of a tape, compiled to one loop."""

from lightning_polystep.tape.fuse.cpu import run
from lightning_polystep.tape.fuse.paying import MOST_WIDER, Loops
from lightning_polystep.tape.fuse.region import Region, partition

__all__ = ["MOST_WIDER", "Loops", "Region", "partition", "run"]
