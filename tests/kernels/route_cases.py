"""Arguments of the kernel for choices."""

import torch

from tests.kernels.cases import values


def case(samples=5, outcomes=4, units=3, candidates=6, dtype=torch.float64, own=True):
    """Multiples of 1/8, among which ties are common and no sum rounds."""
    dyadic = {"dtype": dtype, "dyadic": True}
    changes = values(*((units,) if own else ()), samples, candidates, **dyadic)
    losses = values(samples, outcomes, dtype=torch.float64, dyadic=True)
    return values(samples, outcomes, **dyadic), changes, values(outcomes, units, **dyadic), losses
