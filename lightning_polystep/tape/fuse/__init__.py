"""Score: what lies between two products of a tape, compiled to one loop."""

from lightning_polystep.tape.fuse.cpu import run, warn_of_loops
from lightning_polystep.tape.fuse.region import Region, partition

__all__ = ["Region", "partition", "run", "warn_of_loops"]
