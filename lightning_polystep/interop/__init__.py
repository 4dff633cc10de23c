"""Real parts of the ecosystem: networks of other libraries as they are, and conversions to and from their layers."""

from lightning_polystep.interop.snntorch_conversion import ConversionError, from_snntorch, to_snntorch

__all__ = ["ConversionError", "from_snntorch", "to_snntorch"]
