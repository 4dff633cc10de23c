"""Particles: the rows of parameters that move as one, and a step's proposal for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_polystep.centring import bias_shifts
from lightning_polystep.layers.quantised import QuantisedWeight


@dataclass(eq=False)
class Block:
    """A (rows x dim) view of one or two parameters; each row holds one particle (or several, see ``particle_dim``).

    For a *site* (Linear, Conv2d) a row is the incoming weight of one output unit, its bias last, as the weight of a
    constant input 1: a candidate then changes one pre-activation.

    Args:
        name: Qualified name of the module (site) or parameter.
        parameters: The parameters, in the order of a row's columns.
        parameter_names: Their qualified names in the module.
        group: The optimizer's parameter group, which holds the radii.
        rows: Number of rows U.
        dim: Columns D of a row.
        subspace: Name of the subspace that proposes the directions.
        site: The module whose input the rows act on, or None.
        shiftable: Whether adding to the site's output equals changing its weight.
        shared: Whether its weight belongs to several modules.
        remark: Why the block is not treated in the fastest way, for the plan.
        scale: How far one unit of radius moves, for parameters whose natural scale is not 1.
        scales: The same of each parameter, where one particle holds several (subspace "joint").
        constant: Whether it holds constants of neurons (:mod:`~lightning_polystep.constants`).
        bounds: What its values are kept within.
        lookups: Embeddings whose calls tell which of its rows a batch reads; empty where any row may matter.
        padding: The row that is never trained, or None.
        usual_rows: How many rows a batch reads, about; None for all.
        competes: Whether its rows are the scores of a softmax: what all of them would do alike is left out.
        estimated: Whether the costs of its candidates are estimates.
        population: How many candidates a step has, where the optimizer says so; None leaves it to the plan.
        by_signs: Whether they are weights that act by their signs alone, each of which is flipped.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    parameter_names: tuple[str, ...]
    group: dict[str, Any]
    rows: int
    dim: int
    subspace: str
    site: nn.Module | None = None
    shiftable: bool = False
    shared: bool = False
    remark: str = ""
    scale: float = 1.0
    scales: tuple[float, ...] = ()
    constant: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    lookups: tuple[nn.Module, ...] = ()
    padding: int | None = None
    usual_rows: int | None = None
    population: int | None = None
    competes: bool = False
    estimated: bool = False
    by_signs: bool = False

    @property
    def has_bias(self) -> bool:
        """Whether the last column of a row is a bias."""
        return self.site is not None and len(self.parameters) > 1

    @property
    def learns_inputs(self) -> bool:
        """Whether its subspace wants to know what its inputs look like."""
        return self.subspace in {"inputs", "flips"}

    @property
    def rows_in_play(self) -> int:
        """How many rows a step may find something to probe in."""
        return self.rows if self.usual_rows is None else self.usual_rows

    @property
    def trainable(self) -> bool:
        """Whether every parameter of the block is unfrozen now; toggling optimizers freezes them for a moment."""
        return all(parameter.requires_grad for parameter in self.parameters)

    @property
    def wants_exact(self) -> str:
        """Why its candidates are to be scored exactly; empty where they may be estimated."""
        if self.group["response_grid"] == 0:
            return "response_grid=0 asks for exact costs"
        return "" if self.group["rank"] is None else "a rank is asked for, and as many directions are scored"

    def split(self, rows: Tensor) -> list[Tensor]:
        """Split a (rows x dim) tensor into tensors of the parameters' shapes; leading batch dimensions are kept."""
        widths = [parameter.numel() // self.rows for parameter in self.parameters]
        batch = rows.shape[:-2]
        parts = rows.split(widths, dim=-1)
        return [part.reshape((*batch, *p.shape)) for part, p in zip(parts, self.parameters, strict=True)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors of the parameters' shapes as one (rows x dim) tensor: the inverse of :meth:`split`."""
        return torch.cat([tensor.reshape(self.rows, -1) for tensor in tensors], dim=1)

    def with_displaced(self, rows: Tensor, displacements: Tensor) -> list[Tensor]:
        """Return what the parameters are for each candidate, which moves one row of them.

        Args:
            rows: The row of each candidate, shape (K,).
            displacements: By how much it moves, shape (K, dim).

        Returns:
            One tensor for each parameter, shape (K, ...).
        """
        whole = self.join([parameter.detach() for parameter in self.parameters]).repeat(len(rows), 1, 1)
        whole[torch.arange(len(rows), device=rows.device), rows] += displacements
        return self.split(whole)


@dataclass
class InputStatistics:
    """Running second moment of a site's inputs, and the eigenbasis taken from it.

    Args:
        moment: G = X^T X / N, shape (D, D), float64.
        batches: How many batches the running average has seen.
        basis: Whitened eigenvectors in use, shape (D, K), float64; empty before the first proposal.
        basis_moment: The moment that ``basis`` was taken from, shape (D, D), float64; empty likewise.
        drift: How far the moment has moved since then, relative to its size then (Frobenius norms).
        held: How many batches the moment has taken in since then.
        spreads: Running spreads of the inputs (:mod:`~lightning_polystep.input_units`), shape (2, D), float64; empty
            where unknown.
        mixed: Whether ``basis`` was taken from inputs in units of their own.
        doubted: How many batches in a row were left out because their inputs are unlike those before.
        hidden: Whether the inputs come out of layers that are trained, and so change with them.
        looked_at: After how many batches it was last seen whether the basis still holds.
    """

    moment: Tensor
    batches: int
    basis: Tensor
    basis_moment: Tensor
    drift: float = math.inf
    held: int = 0
    spreads: Tensor = field(default_factory=lambda: torch.zeros(2, 0, dtype=torch.float64))
    mixed: bool = False
    doubted: int = 0
    hidden: bool = False
    looked_at: int = 0


class Loudness(NamedTuple):
    """Rows whose pre-activations are far too large.

    Args:
        factors: How many times wider each row is probed for that, shape (rows,), at least 1.
        outward: In which direction its pre-activations grow, shape (rows, D).
    """

    factors: Tensor
    outward: Tensor


@dataclass
class Proposal:
    """The candidates of one block in one step.

    Candidate ``c`` moves row ``r = rows[c // V]`` by ``probe_radius * reach[c // V] * directions[c % V]``, where
    V = particles per row x m.

    Args:
        block: The block.
        rows: Indices of the probed rows, shape (R,), int64.
        reach: How many times wider than normal each of them is probed, shape (R,), in the parameters' dtype.
        directions: Displacements of a row at radius 1, shape (particles per row, m, D), in the parameters' dtype.
        particle_dim: Dimension d of a particle.
        probe_radius: Radius at which they are probed.
        mirrored: Whether the second half of a particle's vertices is minus the first: what is linear in a candidate
            needs to be found for one of the two only.
        starts: Displacements of a row at reach 1, shape (K, D); a candidate's cost is then the mean of those of K rows,
            each displaced by one of them as well. None for one that is zero.
        centre: What the inputs are on the mean, shape (D - 1,): biases move along with weights, by
            :func:`~lightning_polystep.centring.bias_shifts`. None where they move on their own only.
        louder: By what loudness has widened the reach of each row, shape (R,); None for 1.
        outward: In which direction a row's pre-activations grow, shape (R, D); None where no row is loud.
    """

    block: Block
    rows: Tensor
    reach: Tensor
    directions: Tensor
    particle_dim: int
    probe_radius: float
    mirrored: bool = False
    starts: Tensor | None = None
    centre: Tensor | None = None
    louder: Tensor | None = None
    outward: Tensor | None = None

    @property
    def vertices_per_row(self) -> int:
        """Candidates of one row."""
        return self.directions.shape[0] * self.directions.shape[1]

    @property
    def candidates(self) -> int:
        """Candidates of the block."""
        return len(self.rows) * self.vertices_per_row

    def from_each_start(self) -> list[Proposal]:
        """Return a proposal for each of its starts, whose candidates' losses this one's are the mean of."""
        if self.starts is None:
            return [self]
        return [replace(self, starts=start[None]) for start in self.starts]

    def displacements(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the rows, shape (c,), and their displacements, shape (c, D), of the candidates [start, stop).

        Raises:
            ValueError: With several starts: there is no one displacement then.
        """
        if self.starts is not None and len(self.starts) > 1:
            raise ValueError(f"{self.block.name}: candidates of {len(self.starts)} starts are scored start by start.")
        return self.displacements_of(torch.arange(start, stop, device=self.rows.device))

    def displacements_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows, shape (c,), and their displacements, shape (c, D), of some candidates.

        Args:
            index: Which ones, (c,).
        """
        flat = self.directions.reshape(-1, self.block.dim)
        row, vertex = index // self.vertices_per_row, index % self.vertices_per_row
        reach = self.reach[row, None]
        moved = self.probe_radius * reach * flat[vertex]
        rows, moved = self.rows[row], moved if self.starts is None else moved + reach * self.starts
        if self.centre is not None:
            site, latent = cast("QuantisedWeight", self.block.site), self.block.parameters[0].detach()[rows].flatten(1)
            moved[:, -1] += bias_shifts(site, rows, latent, latent + moved[:, :-1], self.centre)
        if self.block.bounds != (-math.inf, math.inf):  # beyond them a candidate is no other network
            values = self.block.join([parameter.detach() for parameter in self.block.parameters])[rows]
            moved = (values + moved).clamp(*self.block.bounds) - values
        return rows, moved
