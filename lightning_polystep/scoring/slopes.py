r"""Score: candidates from the slopes of the loss at the places where a row enters the step.

The pre-activation of unit u has P places in a sample n: the positions of an image, the tokens of a sequence, the steps
of time. Where the slope of the loss there, :math:`o_{nup}`, is known or estimated, the loss of a candidate that changes
what the row is multiplied as by :math:`\delta_v` is about

.. math:: c_{uv} = L + \delta_v \cdot g_u, \qquad g_u = \sum_{np} o_{nup}\, x_{np},

with the inputs x of the place: one product for any number of directions. What a mask, a constraint or a quantiser makes
of a candidate is computed, not assumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.row_moves import RowMoves, moves_of
from lightning_polystep.scoring.row_tier import RowTier
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.taped import TapeTier
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.tape import Entries, Entry, Program, Tape, summed_over_places

# Bytes that candidates may take that are scored exactly after all.
_EXACT_MEMORY = 2**28
# What costs no more than this, in a loss of about 1 in float32, costs nothing.
NOTHING = 2e-6


@dataclass
class SlopeTier(RowTier):
    """Scores candidates by slopes, which a subclass finds; exactly on a batch that has none, as one of one sample."""

    _told: bool = field(default=False, init=False, repr=False)

    def obstacle(self) -> str:
        """Say why slopes cannot be told on the batch that was recorded; nothing where they can."""
        return "" if self.recording.entries(self.block) is not None else "its rows enter no products of samples"

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        obstacle = self.obstacle()
        if not obstacle:
            return super().score(proposal, probe, start, stop)
        told, self._told = self._told, True
        return scored_exactly(self, obstacle, proposal, probe, range(start, stop), told=told)

    @property
    def entered(self) -> tuple[Entries, Script]:
        """Where the rows of the block enter the step, and how shifts of them are replayed."""
        entered = self.recording.entries(self.block)
        assert entered is not None
        return entered

    def slopes_of_rows(self, proposal: Proposal, probe: Probe, places: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what some rows are multiplied as, (R, D) by value.

        Args:
            proposal: The candidates.
            probe: Of the micro-batch.
            places: Of the rows in the proposal, (R,).
        """
        raise NotImplementedError

    def losses_of_rows(self, proposal: Proposal, probe: Probe, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the losses of all candidates of some rows, for each chunk, in their order, float64."""
        loss = self.known_loss()
        assert loss is not None
        for places in chunks:
            slopes = self.slopes_of_rows(proposal, probe, places)
            yield loss + self.moves.along(proposal, places, self.entered[0], slopes).double()

    @property
    def moves(self) -> RowMoves:
        """What candidates of its rows are."""
        return moves_of(self)

    def most_directions(self) -> int | None:
        """Return fewer where each candidate of each row has to be quantised by itself."""
        return self.moves.most_directions()


def scored_exactly(
    tier: TapeTier, obstacle: str, proposal: Proposal, probe: Probe, share: range, *, told: bool
) -> Tensor:
    """Return the losses of candidates on a batch on which an estimate cannot be made, with one warning for a tier.

    Args:
        tier: The tier that estimates.
        obstacle: Why it cannot.
        proposal: The candidates.
        probe: Of the micro-batch.
        share: Which of them.
        told: Whether it was said before.
    """
    if not told:
        warnings.warn(
            f"{tier.block.name}: on a batch that is unlike the first ({obstacle}) its candidates are scored exactly, "
            "which takes longer. drop_last=True in the DataLoader leaves out a last batch of one sample.",
            stacklevel=3,
        )
    exact = tier.exact()
    return exact.chunking(_EXACT_MEMORY).run(partial(exact.score, proposal, probe), share)


class Reaches(dict[object, tuple[Entry, Tensor]]):
    """By key a product, and how far a candidate of reach 1 typically shifts each of its places, (N', ...)."""

    @classmethod
    def of(cls, tier: SlopeTier, entries: Entries, proposal: Proposal) -> Reaches:
        """Find that, once for all chunks of a proposal."""
        kept, known = tier.recording.taken().arrays, (entries.behind, "reaches")
        if known in kept and kept[known][0] is proposal:
            found: Reaches = kept[known][1]
            return found
        typical = tier.moves.typical(proposal, entries)
        made = cls()
        for entry in entries.products:
            if entry.key not in made:
                made[entry.key] = entry, typical(entry)
        kept[known] = proposal, made
        return made


def odd_parts(trial: Proposal, costs: Tensor) -> Tensor:
    """Return half the differences of opposite vertices."""
    count = trial.directions.shape[1]
    apart = costs.reshape(-1, 2, count // 2)
    return 0.5 * (apart[:, 0] - apart[:, 1])


def cosine_of_rows(trial: Proposal, costs: Tensor, exact: Tensor) -> float:
    """Return how well the directions agree in which costs send rows, the mean cosine; 1 where nothing costs anything.

    Rows of one direction, as those of biases, are one vector together: the cosine of each is a sign, and of those that
    hardly do anything, as the bias of keys, a sign at random.

    Args:
        trial: The candidates.
        costs: By how much they change the loss, as estimated.
        exact: The same exactly.
    """
    if bool((exact.abs() <= NOTHING).all()):  # as of a bias before a norm
        return 1.0
    if trial.mirrored:
        costs, exact = (odd_parts(trial, each) for each in (costs, exact))
    costs, exact = (each.reshape(len(trial.rows), -1) for each in (costs, exact))
    if costs.shape[1] == 1:
        costs, exact = costs.T, exact.T
    return float(functional.cosine_similarity(costs, exact, dim=1).mean())


def add_slopes(slopes: dict[int, Tensor], tape: Tape, entry: Entry, answer: Tensor, rows: Tensor | None = None) -> None:
    """Add to the slopes of rows, (R, D) by value, what the slopes at the places of a product say of them.

    Args:
        slopes: To be added to.
        tape: Of the step.
        entry: The product.
        answer: Slopes at its places, (R, N', P).
        rows: Which rows these are; by default all.
    """
    if entry.weight is not None:
        own = summed_over_places(tape, entry, answer, rows)
        slopes[entry.weight] = slopes[entry.weight] + own if entry.weight in slopes else own
    if entry.bias is not None:
        gain = torch.as_tensor(entry.gain(tape)).to(answer).reshape(-1, 1)
        gain = gain if rows is None or len(gain) == 1 else gain[rows]
        own = torch.where(gain != 0, answer.sum((1, 2))[:, None] / gain, 0.0)
        slopes[entry.bias] = slopes[entry.bias] + own if entry.bias in slopes else own


def of_samples(program: Program, made: int, known: Tensor, places: tuple[int, ...] = ()) -> Tensor:
    """Spread numbers of samples over the first axis of a product, which may hold others beside them.

    Args:
        program: Knows the axes.
        made: What the product makes.
        known: The numbers, (..., N); of some places of each, (..., N * P).
        places: The labels of these, outermost first.
    """
    axis, leading = program.axes[made][0], known.shape[:-1]
    held = [label for label in (program.sample, *places) if label is not None]
    size = {label: program.labels.size((label,)) for label in (*axis, *held)}
    apart = known.reshape(*leading, *(size[label] for label in held))
    kept = [len(leading) + held.index(label) for label in axis if label in held]
    given = [size[label] if label in held else 1 for label in axis]
    in_order = apart.permute(*range(len(leading)), *kept).reshape(*leading, *given)
    return in_order.expand(*leading, *(size[label] for label in axis)).reshape(*leading, -1)


def check_slopes(block: Block) -> None:
    """Check that candidates of a block can be scored by slopes.

    Args:
        block: The parameters.

    Raises:
        NotOfferedError: Where they cannot, or exact costs are asked for.
    """
    directions = block.subspace in {"inputs", "gaussian"} or block.by_signs
    if block.constant or not directions or block.population is not None:
        raise NotOfferedError("its candidates are no directions of rows")
    if block.wants_exact:
        raise NotOfferedError(block.wants_exact)
