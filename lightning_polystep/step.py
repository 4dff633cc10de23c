r"""One PolyStep step is five verbs; this file is the map of the package, in the order in which they run.

=========  ==================================================================  =============================
verb       what it does                                                        where
=========  ==================================================================  =============================
observe    run the batch once, keep what the sites saw                         ``commit_pass.py``, ``sites.py``
propose    place the vertices of rotated polytopes around every particle       ``proposing.py``, ``subspaces/``
score      find every candidate's loss on the batch                            ``scoring/``
transport  turn the costs of a particle's vertices into weights                ``transport/``
move       go to the barycentre, through momentum                              here and ``optimizer.py``
=========  ==================================================================  =============================

The engine (``engine.py``) runs the first three on every micro-batch, the optimizer (``optimizer.py``) the last two once
per step. Nothing here knows Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_polystep.last_moves import common_move
from lightning_polystep.mistakes import with_cures
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.polytopes import POLYTOPES, biased_rotation, haar_rotation
from lightning_polystep.randomness import generator
from lightning_polystep.schedules import value_at
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.sites import Observation, observing, update_statistics
from lightning_polystep.subspaces import SUBSPACES, particle_dim
from lightning_polystep.transport import TRANSPORTS, normalise, transport_of
from lightning_polystep.transport.normalise import FLAT_SHARE, LOSS_ROUNDING
from lightning_polystep.transport.vertices import sum_over_vertices


@contextmanager
def observe(module: nn.Module, blocks: list[Block], measured: set[str]) -> Iterator[Observation]:
    """Record what the sites see while the body runs the module once; :func:`learn_inputs` then keeps it."""
    with observing(module, blocks, measured) as seen, with_cures():
        yield seen


def learn_inputs(
    moments: dict[str, Tensor], statistics: dict[str, InputStatistics], spreads: dict[str, Tensor] | None = None
) -> None:
    """Fold what a commit pass showed of sites' inputs, moments and spreads, into their running statistics."""
    for name, moment in moments.items():
        statistics[name] = update_statistics(statistics.get(name), moment, (spreads or {}).get(name))


def propose(  # noqa: PLR0913 - keyword-only options, each with a default
    block: Block,
    statistics: InputStatistics | None,
    reach: Tensor | None = None,
    *,
    seed: int,
    step: int,
    rank: int,
    rotations: int = 1,
    most_rows: int | None = None,
    among: Tensor | None = None,
    moves: Tensor | None = None,
) -> Proposal:
    r"""Place the rotated vertices :math:`B R v` around the particles of a block.

    Args:
        block: The block.
        statistics: What is known of its inputs (sites in the "inputs" subspace).
        reach: How many times wider than normal each row is probed, shape (block.rows,); 1 by default.
        seed: Seed of the run.
        step: Optimizer step.
        rank: Directions wanted; the subspace may have fewer.
        rotations: Independently rotated polytopes around each particle.
        most_rows: Probe only so many rows in this step, drawn at random; all by default.
        among: Rows that may be probed, ascending, int64; all by default.
        moves: What the rows have lately done, shape (block.rows, D), for what wants to follow that.

    Returns:
        The proposal; ``directions`` has shape (particles per row, rotations x m, D).
    """
    group, subspace, polytope = block.group, SUBSPACES[block.subspace], POLYTOPES[block.group["polytope"]]
    rank = min(rank, subspace.rank(block, group, statistics))
    dim = particle_dim(block, rank)
    draw = generator(seed, step, f"basis/{block.name}")
    anchor = step - step % group["anchor_every"]
    parts = []
    for turn in range(rotations):
        # Several radii at once: they grow from one polytope to the next, around the probe radius.
        wider = group["radius_ratio"] ** (turn - (rotations - 1) / 2) if subspace.has_radius else 1.0
        # A basis that is kept is drawn where it was drawn first: a resumed run needs no memory of it.
        source = draw if group["anchor_every"] == 1 else generator(seed, anchor, f"anchor/{block.name}/{turn}")
        basis = subspace.basis(block, rank // dim * dim, group, statistics, source)
        basis = basis if moves is None else subspace.guided(basis, block, moves, draw)
        columns = basis.reshape(block.dim, rank // dim, dim).permute(1, 2, 0)
        parts.append(wider * _turned(columns, block, moves, draw))
    directions = torch.cat([*parts, *(-part for part in parts)] if polytope.mirrored else parts, dim=1)
    # Of a table that the first batch does not read, the plan tries any row.
    rows = torch.arange(block.rows) if among is None or not len(among) else among
    if most_rows is not None and most_rows < len(rows):
        rows = rows[torch.randperm(len(rows), generator=draw)[:most_rows].sort().values]
    loudness = subspace.loudness(block, statistics)
    starts, centre = subspace.starts(block, group, draw, statistics), subspace.centre(block, statistics)
    parameter = block.parameters[0]
    rows = rows.to(parameter.device)
    own = parameter.new_ones(len(rows)) if reach is None else reach[rows].to(parameter)
    louder = None if loudness is None else torch.maximum(own, loudness.factors[rows].to(parameter)) / own
    return Proposal(
        block=block,
        rows=rows,
        reach=own if louder is None else own * louder,
        directions=directions.to(parameter),
        particle_dim=dim,
        probe_radius=subspace.probe_radius(group),
        mirrored=polytope.mirrored,
        starts=None if starts is None else starts.to(parameter),
        centre=None if centre is None else centre.to(parameter),
        louder=louder,
        outward=None if loudness is None else loudness.outward[rows].to(parameter),
    )


def _turned(columns: Tensor, block: Block, moves: Tensor | None, draw: torch.Generator) -> Tensor:
    """Return the vertices of a polytope in each particle's columns; of a mirrored one the first half of them.

    Args:
        columns: Of each particle, shape (particles per row, d, D).
        block: Its subspace and group say how they are turned.
        moves: What the rows have lately done, shape (block.rows, D).
        draw: Source of randomness, on the CPU.

    Returns:
        Shape (particles per row, m or m / 2, D).
    """
    group, subspace, polytope = block.group, SUBSPACES[block.subspace], POLYTOPES[block.group["polytope"]]
    dim = columns.shape[1]
    vertices = polytope.vertices(dim)
    vertices = vertices[: len(vertices) // 2] if polytope.mirrored else vertices
    is_again = group["anchor_every"] > 1 or (group["rotation_bias"] > 0 and moves is not None)
    if subspace.is_rotated and not (is_again and subspace.particle_dim is None):
        return columns if polytope.axial else vertices.to(columns) @ columns
    turns = [haar_rotation(dim, generator=draw).to(vertices) for _ in range(len(columns))]
    if group["rotation_bias"] > 0 and moves is not None:
        # In a particle's coordinates the move is what its columns see of it.
        seen = columns @ common_move(moves).to(columns)
        turns = [
            biased_rotation(turn, towards, group["rotation_bias"])
            for turn, towards in zip(turns, seen.cpu(), strict=True)
        ]
    return (vertices @ torch.stack(turns)).to(columns) @ columns


def look(proposals: Iterable[Proposal], assignments: Mapping[Block, Assignment], probe: Probe) -> None:
    """Let all tiers see a micro-batch, on all processes, before any of them scores on it."""
    for proposal in proposals:
        assignments[proposal.block].look(proposal, probe)


def score(proposal: Proposal, assignment: Assignment, probe: Probe, share: range) -> Tensor:
    """Return the losses of the candidates in ``share``, shape (len(share),), float64, by the tier the plan assigned."""
    return assignment.score(proposal, probe, share)


_WIDEST_REACH = 16.0


class Transported(NamedTuple):
    """Weights of the vertices, and what the log says about them.

    Args:
        weights: W, shape (rows, particles per row, m), float64.
        spread: Standard deviation sigma of the centred costs over the block, in units of the loss.
        row_spread: The same of each row, shape (rows,).
        effective_vertices: Mean of exp(entropy of W): m means no preference, 1 a clear winner.
        flat_rows: Share of rows whose candidates all cost the same: they got no signal.
        marginal_error: How far the vertices' shares of all weight are from those that the transport was asked for.
        converged: Whether the transport found what it was asked for.
        one_sided: Whether the block has too few rows for its transport and was weighed by a softmax.
    """

    weights: Tensor
    spread: Tensor
    row_spread: Tensor
    effective_vertices: Tensor
    flat_rows: Tensor
    marginal_error: Tensor
    converged: bool
    one_sided: bool


@torch.no_grad()
def transport(
    costs: Tensor, group: dict[str, Any], *, seed: int, step: int, name: str, usual: Tensor | None = None
) -> Transported:
    r"""Normalise costs and weigh the vertices.

    Costs are centred per particle and divided by the standard deviation :math:`\sigma_i` of their row
    (:func:`~lightning_polystep.transport.normalise.normalise`), so that :math:`\varepsilon` has no unit; by default
    :math:`W = \mathrm{softmax}(-(C - \bar C) / (\sigma_i \varepsilon))`. Non-finite costs neither count nor win.

    Args:
        costs: C, shape (rows, particles per row, m), float64; lower is better.
        group: Holds the temperature ``epsilon``, or its schedule, and the ``transport``, or its name.
        seed: Seed of the run.
        step: Optimizer step.
        name: The block's name: what a transport draws is a function of these three.
        usual: What rows spread lately, shape (rows,); None for 0.
    """
    normalised = normalise(costs.detach(), usual)
    chosen = transport_of(group["transport"])
    one_sided = len(costs) < chosen.least_rows
    if one_sided:
        chosen = TRANSPORTS["softmax"]
    draw = generator(seed, step, f"transport/{name}") if chosen.draws else None
    weights, marginal_error, converged = chosen.weigh(normalised.costs, value_at(group["epsilon"], step), draw)
    entropy = -sum_over_vertices(torch.special.xlogy(weights, weights))
    return Transported(
        weights=weights,
        spread=normalised.spread,
        row_spread=normalised.row_spread,
        effective_vertices=entropy.exp().mean(),
        flat_rows=is_flat(normalised.row_spread).double().mean(),
        marginal_error=marginal_error,
        converged=converged,
        one_sided=one_sided,
    )


def null_candidates(costs: Tensor, incumbent: Tensor) -> Tensor:
    """Return the share of candidates that cost what the incumbent costs: they changed nothing that the loss sees.

    Equal to the rounding of a float32 loss, because a batched forward may round the same loss in another way. Of a
    network of hard layers these are the candidates that left every code, spike train and route as it was.

    Args:
        costs: Any shape; what is not finite is no null candidate.
        incumbent: The incumbent's cost, scored in the same way, a scalar.

    Example:
        >>> null_candidates(torch.tensor([1.0, 2.0, 1.0, 0.5]), torch.tensor(1.0))
        tensor(0.5000, dtype=torch.float64)
    """
    return ((costs - incumbent).abs() <= LOSS_ROUNDING * incumbent.abs()).double().mean()


def is_flat(row_spread: Tensor) -> Tensor:
    """Tell which rows' candidates hardly differ: a silent neuron, a dead class, a saturated step.

    Args:
        row_spread: Standard deviation of each row's costs, shape (rows,).

    Returns:
        Shape (rows,), bool: below 2 % of the median of the rows that differ at all.

    Example:
        >>> is_flat(torch.tensor([0.0, 1.0, 1.2, 0.01])).tolist()
        [True, False, False, True]
    """
    alive = row_spread[row_spread > 0]
    typical = alive.median() if len(alive) else row_spread.new_ones(())
    return row_spread < FLAT_SHARE * typical


def adapt_reach(reach: Tensor, row_spread: Tensor) -> Tensor:
    """Return how wide each row is probed next: twice as wide while it is flat, up to 16 times, then back again.

    Args:
        reach: Multiples of the normal radius, shape (rows,).
        row_spread: Standard deviation of each row's costs, shape (rows,).

    Example:
        >>> adapt_reach(torch.tensor([1.0, 4.0, 1.0]), torch.tensor([0.0, 1.0, 1.2])).tolist()
        [2.0, 2.0, 1.0]
    """
    return torch.where(is_flat(row_spread), reach * 2, reach / 2).clamp(1.0, _WIDEST_REACH)


def held_back(displacement: Tensor, proposal: Proposal, costs: Tensor, incumbent: Tensor) -> Tensor:
    """Return displacements of constants of neurons, none of them towards a vertex that changes nothing.

    A layer that clamps a constant makes all values beyond the clamp alike: weighed against a worse vertex, one of those
    would look like a gain, and from there nothing comes back.

    Args:
        displacement: Of the rows, shape (rows, 1).
        proposal: The candidates.
        costs: C, shape (rows, 1, m).
        incumbent: The incumbent's cost, a scalar.

    Returns:
        Shape (rows, 1).
    """
    if proposal.directions.shape[0] != 1 or proposal.block.dim != 1:
        return displacement
    nothing = ((costs - incumbent).abs() <= LOSS_ROUNDING * incumbent.abs())[:, 0]
    sides = proposal.directions[0, :, 0].sign()
    ahead = sides == displacement.sign()
    return torch.where((nothing & ahead).any(1, keepdim=True), 0.0, displacement)


def move(proposal: Proposal, weights: Tensor) -> Tensor:
    r"""Return the rows' barycentric displacements at radius 1.

    .. math:: \Delta_i = \sqrt d\, r_i \sum_v W_{iv}\, B R v

    The factor :math:`\sqrt d` (d the particle's dimension) makes the step radius independent of d; a row that was
    probed :math:`r_i` times wider moves as much wider. If it was so because it is loud, it does only where that makes
    it less so: steps in proportion to a row's size would else let it grow without end. Of rows that compete, as the
    scores of a softmax, the mean move is taken away: a candidate moves one row against all others, but what all of them
    do alike changes nothing that the loss sees.

    Args:
        proposal: The candidates.
        weights: W, shape (rows, particles per row, m).

    Returns:
        Shape (rows, D), in the parameters' dtype.
    """
    directions, weights = proposal.directions, weights.to(proposal.directions)
    if proposal.mirrored:  # v and -v: one product of half the size
        half = directions.shape[1] // 2
        directions, weights = directions[:, :half], weights[..., :half] - weights[..., half:]
    barycentre = torch.einsum("rgv,gvD->rD", weights, directions)
    moved = math.sqrt(proposal.particle_dim) * proposal.reach[:, None] * barycentre
    if proposal.block.competes:
        # Of some of the rows as much less as there are fewer of them: the move of a single one is not one of all.
        share = (len(moved) - 1) / max(1, proposal.block.rows - 1)
        moved = moved - share * moved.mean(0)
    if proposal.louder is None or proposal.outward is None:
        return moved
    grows = (moved * proposal.outward).sum(1, keepdim=True) > 0
    return torch.where(grows, moved / proposal.louder[:, None], moved)
