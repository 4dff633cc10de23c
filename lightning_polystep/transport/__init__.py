"""Transport: how the costs of particles' vertices become weights. One per file, all of them of one protocol."""

from lightning_polystep.transport.kl_relaxed import KLRelaxed
from lightning_polystep.transport.normalise import normalise, usual_spread
from lightning_polystep.transport.protocol import Transport, Weights
from lightning_polystep.transport.sample import Sample
from lightning_polystep.transport.sinkhorn import Sinkhorn
from lightning_polystep.transport.softmax import Softmax, softmax_transport

TRANSPORTS: dict[str, Transport] = {
    transport.name: transport for transport in (Softmax(), Sinkhorn(), KLRelaxed(), Sample())
}


def transport_of(choice: str | Transport) -> Transport:
    """Return the transport that a parameter group has chosen, by its name (with default settings) or itself."""
    return TRANSPORTS[choice] if isinstance(choice, str) else choice


__all__ = [
    "TRANSPORTS",
    "KLRelaxed",
    "Sample",
    "Sinkhorn",
    "Softmax",
    "Transport",
    "Weights",
    "normalise",
    "softmax_transport",
    "transport_of",
    "usual_spread",
]
