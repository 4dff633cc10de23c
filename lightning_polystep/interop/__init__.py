"""Real parts of the ecosystem: adapters for probing them as they are, and conversions to this package's layers."""
