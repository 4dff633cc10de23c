"""What this process has cost so far: processor seconds, and the most memory at once."""

from __future__ import annotations

import sys
import time


def process_costs() -> dict[str, float]:
    """Return ``processor_seconds`` and, where the system tells, ``peak_memory_mib``, of this process since its start.

    Processes of loaders and of other devices are not counted, and memory is that of the host.

    Example:
        >>> costs = process_costs()
        >>> costs["processor_seconds"] > 0
        True
    """
    costs = {"processor_seconds": time.process_time()}
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - Windows has none

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, and KiB elsewhere
        costs["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return costs
