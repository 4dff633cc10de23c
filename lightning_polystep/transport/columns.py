r"""What transports that ask something of the columns share: which shares, how exactly, and how they are found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.transport.protocol import Transport, Weights, finite_somewhere
from lightning_polystep.transport.vertices import softmax_over_vertices


@dataclass(frozen=True, kw_only=True)
class ColumnShares(Transport):
    """A transport that asks something of the columns, of the settings that all of these have.

    Args:
        columns: Share of all weight that each vertex is to get, m numbers above 0 that sum to 1, in the order of the
            polytope's vertices; None for 1 / m each.
        tolerance: Above 0; iterations end when none changes a column's scale by more than this share of it.
        iterations: At least 1; how many there may be. Where they do not suffice, rows still sum to 1, columns are as
            far off as ``polystep/marginal_error`` says, and the optimizer warns once.

    Raises:
        ValueError: When a value is out of its range.
    """

    columns: tuple[float, ...] | None = None
    tolerance: float = 1e-6
    iterations: int = 1000

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))  # a list, from JSON
            if not (all(share > 0 for share in self.columns) and abs(sum(self.columns) - 1) <= 1e-6):
                raise ValueError(f"{kind}(columns={self.columns}): the shares must be above 0 and sum to 1.")
        if not self.tolerance > 0:
            raise ValueError(f"{kind}(tolerance={self.tolerance}): the tolerance must be above 0.")
        if self.iterations < 1:
            raise ValueError(f"{kind}(iterations={self.iterations}): there must be at least 1.")

    def shares(self, costs: Tensor) -> Tensor:
        """Return the columns' shares, shape (m,), as the costs are.

        Raises:
            ValueError: When there are more or fewer shares than vertices.
        """
        vertices = costs.shape[-1]
        if self.columns is None:
            return costs.new_full((vertices,), 1.0 / vertices)
        if len(self.columns) != vertices:
            raise ValueError(
                f"{type(self).__name__}(columns=...) has {len(self.columns)} shares, but a particle has {vertices} "
                "vertices: set columns to None, or rank, particle_dim and polytope so that there are as many."
            )
        return costs.new_tensor(self.columns)


@torch.no_grad()
def scale_in_turns(costs: Tensor, epsilon: float, wanted: ColumnShares, pull: float) -> Weights:
    r"""Scale rows and columns in turns, in the log domain.

    .. math:: f_i \leftarrow -\log \sum_v \exp(g_v - C_{iv} / \varepsilon), \qquad
              g_v \leftarrow \kappa \Bigl(\log n b_v - \log \sum_i \exp(f_i - C_{iv} / \varepsilon)\Bigr)

    Particles without a finite cost count in no column. A column without a finite cost gets nothing, and its share goes
    to the others in proportion; ``marginal_error`` is still that of the shares that were asked for.

    Args:
        costs: C, shape (rows, particles per row, m).
        epsilon: Temperature, above 0, in the units of the costs.
        wanted: The shares b, and how exactly.
        pull: :math:`\kappa`, in [0, 1]: 1 gives columns their shares, 0 lets them be.
    """
    shares, finite, alive = wanted.shares(costs), torch.isfinite(costs), finite_somewhere(costs)
    kernel = torch.where(alive, -costs / epsilon, 0.0)
    rows, reachable = alive.sum(0), finite.any(0)
    columns = reachable.sum(-1, keepdim=True)
    within = torch.where(reachable, shares, 0.0)
    target = (rows * within / within.sum(-1, keepdim=True)).log()
    potential = costs.new_zeros(reachable.shape)
    converged = False
    for _ in range(wanted.iterations):
        plan = torch.log_softmax(kernel + potential, dim=-1)
        mass = torch.logsumexp(plan.masked_fill(~alive, -torch.inf), dim=0)
        updated = torch.where(reachable, pull * (potential + target - mass), 0.0)
        # What all columns have in common changes no plan, and would take for ever to settle where the pull is nearly 1.
        updated = torch.where(reachable, updated - updated.sum(-1, keepdim=True) / columns, 0.0)
        change, potential = (updated - potential).abs().max(), updated
        if bool(change <= wanted.tolerance):
            converged = True
            break
    weights = torch.where(alive, softmax_over_vertices(kernel + potential), 1.0 / costs.shape[-1])
    got = (weights * alive).sum(0) / rows
    error = torch.where(rows > 0, (got - shares).abs().sum(-1, keepdim=True), 0.0).max()
    return Weights(weights, error, converged)
