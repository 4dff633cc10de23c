"""Real parts of the ecosystem: networks of other libraries as they are, and conversions to and from their layers."""

from lightning_polystep.interop.brevitas import UncalibratedScaleError
from lightning_polystep.interop.brevitas_conversion import from_brevitas, to_brevitas
from lightning_polystep.interop.folding import fold_batch_norm
from lightning_polystep.interop.snntorch_conversion import ConversionError, from_snntorch, to_snntorch

__all__ = [
    "ConversionError",
    "UncalibratedScaleError",
    "fold_batch_norm",
    "from_brevitas",
    "from_snntorch",
    "to_brevitas",
    "to_snntorch",
]
