"""Flip costs on the CPU: one pass over the clauses."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.kernels.simd import compiled


def flip_costs(values: Tensor, literals: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.flip_costs`."""
    found = np.zeros(len(values) + 1, np.int64)
    _add_up(values.numpy(), literals.numpy(), starts.numpy(), weights.numpy(), found)
    return torch.from_numpy(found)


@compiled()
def _add_up(
    values: NDArray[np.bool_],
    literals: NDArray[np.int32],
    starts: NDArray[np.int64],
    weights: NDArray[np.int64],
    found: NDArray[np.int64],
) -> None:
    for clause in range(len(weights)):
        count, last = 0, 0
        for place in range(starts[clause], starts[clause + 1]):
            variable = literals[place] >> 1
            if values[variable] != (literals[place] & 1 == 1):
                count += 1
                last = variable
        if count == 1:
            found[last] += weights[clause]
        elif count == 0:
            found[-1] += weights[clause]
            for place in range(starts[clause], starts[clause + 1]):
                found[literals[place] >> 1] -= weights[clause]
