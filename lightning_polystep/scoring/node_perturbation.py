r"""Score candidates by how the loss of each sample answers to random shifts of a unit: node perturbation.

The pre-activation of unit u has P places in a sample: the positions of an image, the tokens of a sequence, the steps of
time. A replay of the tape adds :math:`\rho_{np} \sigma_{np}` to all of them, with random signs :math:`\sigma`, another
adds the opposite, and half the difference of the two losses of sample n,
:math:`o_n = (f_n(\rho\sigma) - f_n(-\rho\sigma)) / 2`, tells how much each place matters:
:math:`E[o_n \sigma_{np} / \rho_{np}]` is the mean slope of the loss there. With the inputs x of the place,

.. math:: c_{uv} = L + \delta_v \cdot g_u, \qquad g_u = \sum_{np} \frac{o_n \sigma_{np}}{\rho_{np}} x_{np},

estimates the loss of a candidate that changes what the row is multiplied as by :math:`\delta_v`, for any number of
directions, from two replays of a row. An estimate: unbiased where the response is linear within the radius, and noisy,
the less so the more patterns a step affords. The radius is that of the candidates, so that steps and thresholds within
it are seen. Node perturbation goes back to Widrow and Lehr (1990, "30 years of adaptive neural networks", section on
MRIII); it is applied here to one unit at a time, in mirrored pairs, under common random numbers.

Is it worth it? With noise of :math:`\nu` times the signal for one pattern, b patterns find the direction of steepest
descent with a squared cosine of :math:`1 / (1 + \nu / b)`; as many replays of b directions of D, exactly, with b / D.
So the estimate is used where :math:`D > b + \nu`, measured on the trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.row_tier import RowTier
from lightning_polystep.scoring.taped import Recording, Script
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.subspaces import directions_wanted
from lightning_polystep.tape import Apart, Entries, Entry, Program, Tape, Work, mixes_changes, patches

# More patterns than this of a row say little more.
_MOST_PATTERNS = 8
# Directions from which it is learned how far a typical candidate shifts each place.
_TYPICAL = 16
# Rows of which that is looked at where masks or quantisers make it another for each.
_FEW_ROWS = 4
# Directions of a row of which each is computed by itself.
_OF_ITS_OWN = 32
# Later in training samples agree less than on the trial, and the estimate is so much noisier.
_NOISIER_LATER = 2.0


@dataclass
class NodePerturbationTier(RowTier):
    """Replays random shifts of each row, and estimates its candidates from them.

    Args:
        patterns: How many are drawn for each row in a step; each is replayed with both signs.
    """

    patterns: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "nodes"

    @property
    def _entered(self) -> tuple[Entries, Script]:
        entered = self.recording.entries(self.block)
        assert entered is not None
        return entered

    @property
    def replays_of_row(self) -> int:
        """A pattern and its opposite."""
        return 2

    def losses_of_rows(self, proposal: Proposal, probe: Probe, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the losses of all candidates of some rows, for each chunk, in their order, float64."""
        loss = self.known_loss()
        assert loss is not None
        for places in chunks:
            yield loss + self._changes(proposal, probe, places).double()

    def work_of_row(self) -> Work:
        """Return what a replay of shifts costs."""
        return self._entered[1].work

    def _changes(self, proposal: Proposal, probe: Probe, places: Tensor) -> Tensor:
        """Return by how much the candidates of some rows change the loss, (R, V)."""
        entries, script = self._entered
        reaches, tape = _Reaches.of(self, entries, proposal), self.recording.taken()
        seed, step, micro_batch = probe.noise_key
        draw = generator(seed, step, f"nodes/{self.block.name}/{int(places[0])}", micro_batch)
        reach, shifts, signs = proposal.reach[places], dict[int, Tensor](), dict[object, Tensor]()
        for key, (entry, typical) in reaches.items():
            signs[key] = _signs((len(places), self.patterns, *typical.shape), draw, typical)
            one = signs[key] * typical * reach.reshape(-1, *[1] * (1 + typical.ndim)).to(typical)
            both = torch.stack([one, -one], 2).flatten(0, 2).unsqueeze(2)  # (R * K * 2, N', 1, ...)
            both = both.to(tape.values[entry.made].tensor.dtype)
            shifts |= {each.made: both for each in entries.products if each.key == key}
        rows = proposal.rows[places].repeat_interleave(2 * self.patterns)
        replays, samples = 2 * self.patterns * len(proposal.rows), script.program.samples
        losses = self.replayed(script, probe, replays, rows, {}, shifts, None, Apart(samples))
        each = losses.reshape(len(places), self.patterns, 2, samples)
        odd, slopes = 0.5 * (each[:, :, 0] - each[:, :, 1]), dict[int, Tensor]()
        for key, (entry, typical) in reaches.items():
            flat, own = typical.reshape(len(typical), -1), signs[key].reshape(*signs[key].shape[:3], -1)
            met = (_of_samples(script.program, entry.made, odd.to(flat))[..., None] * own).mean(1)
            answer = met * torch.where(flat > 0, 1 / flat, 0.0) / reach[:, None, None]
            _add_slopes(slopes, tape, entry, answer)
        return self._along(proposal, places, entries, slopes)

    def _along(self, proposal: Proposal, places: Tensor, entries: Entries, slopes: dict[int, Tensor]) -> Tensor:
        """Return what slopes of rows say of candidates, (R, V): the product with what changes of what is multiplied."""
        directions = self._shared_directions(proposal, entries)
        if directions is not None:
            total = sum(slopes[index] @ columns.T.to(slopes[index]) for index, columns in directions.items())
            assert isinstance(total, Tensor)
            return total * proposal.reach[places, None]
        count = proposal.vertices_per_row
        changed = self._rows_as_multiplied(proposal, places, entries)
        apart = {index: change.reshape(len(places), count, -1) for index, change in changed.items()}
        total = sum((apart[index].to(slope) @ slope[:, :, None]).squeeze(2) for index, slope in slopes.items())
        assert isinstance(total, Tensor)
        return total

    def changes_of_rows(self, proposal: Proposal, entries: Entries) -> dict[int, Tensor]:
        """Return how some candidates change what their row is multiplied as, (V, D) by value."""
        shared = self._shared_directions(proposal, entries)
        if shared is not None:
            return shared
        few = torch.arange(min(_FEW_ROWS, len(proposal.rows)), device=proposal.rows.device)
        return self._rows_as_multiplied(proposal, few, entries)

    def _rows_as_multiplied(self, proposal: Proposal, places: Tensor, entries: Entries) -> dict[int, Tensor]:
        """Return how the candidates of some rows change what their products multiply, (R * V, D) by value."""
        count = proposal.vertices_per_row
        every = (places[:, None] * count + torch.arange(count, device=places.device)).flatten()
        changed = dict(self._changed(self._entered[1].program, proposal, every))
        return entries.rows_as_multiplied(
            self.recording.taken(), proposal.rows[places].repeat_interleave(count), changed
        )

    def _shared_directions(self, proposal: Proposal, entries: Entries) -> dict[int, Tensor] | None:
        """Return how vertices change what is multiplied, (V, D) by value; None where that depends on the row."""
        block, own = self.block, self.recording.leaves_of(self.block)
        if proposal.starts is not None or proposal.centre is not None or not entries.multiplied <= set(own):
            return None
        widths = [parameter.numel() // block.rows for parameter in block.parameters]
        moved = (proposal.probe_radius * proposal.directions.reshape(-1, block.dim)).split(widths, dim=1)
        return {
            index: columns
            for index, columns in zip(own, moved, strict=True)
            if index is not None and index in entries.multiplied
        }

    def approximation(self) -> str:
        """Say what is approximated."""
        return f"estimated from {2 * self.patterns} random shifts of each row"

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why exact costs of few directions tell more; nothing where they do not."""
        if trial.mirrored:
            costs, exact = (_odd(trial, each) for each in (costs, exact))
        noise = float((costs - exact).square().sum() / exact.square().sum().clamp(min=torch.finfo(exact.dtype).tiny))
        patterns = min(_MOST_PATTERNS, max(1, (self.affordable_rows() or 1) // self.block.rows_in_play))
        directions = directions_wanted(self.block)
        if directions > patterns + _NOISIER_LATER * noise:
            return ""
        return f"noise of {noise:.2g} times the signal, more than {patterns} of {directions} exact directions miss"

    def most_directions(self) -> int | None:
        """Return fewer where each candidate of each row has to be masked or quantised by itself."""
        return None if self._entered[0].multiplied <= set(self.recording.leaves_of(self.block)) else _OF_ITS_OWN

    def repeat(self, most: float) -> int:
        """Use as many patterns as can be paid for; return how many."""
        self.patterns = max(1, min(_MOST_PATTERNS, int(most)))
        return self.patterns

    @property
    def most_repeats(self) -> int:
        """How many patterns of a row are worth replaying."""
        return _MOST_PATTERNS


class _Reaches(dict[object, tuple[Entry, Tensor]]):
    """By key a product, and how far a candidate of reach 1 typically shifts each of its places, (N', ...)."""

    @classmethod
    def of(cls, tier: NodePerturbationTier, entries: Entries, proposal: Proposal) -> _Reaches:
        """Find that, once for all chunks of a proposal."""
        tape = tier.recording.taken()
        kept, known = tape.arrays, (entries.behind, "reaches")
        if known in kept and kept[known][0] is proposal:
            found: _Reaches = kept[known][1]
            return found
        changes = tier.changes_of_rows(proposal, entries)
        half = max(1, len(next(iter(changes.values()))) // 2)  # the others are often the same mirrored
        sample = {index: change[:half][:: max(1, half // _TYPICAL)][:_TYPICAL] for index, change in changes.items()}
        made = cls()
        for entry in entries.products:
            if entry.key not in made:
                whole = tape.values[entry.made].tensor.shape
                typical = _shifted(tape, entry, sample).square().mean(0).sqrt().reshape(whole[0], *whole[2:])
                made[entry.key] = entry, typical
        kept[known] = proposal, made
        return made


def _signs(shape: tuple[int, ...], draw: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=draw, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def _odd(trial: Proposal, costs: Tensor) -> Tensor:
    """Return half the differences of opposite vertices."""
    count = trial.directions.shape[1]
    apart = costs.reshape(-1, 2, count // 2)
    return 0.5 * (apart[:, 0] - apart[:, 1])


def _precise(numbers: Tensor) -> Tensor:
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _shifted(tape: Tape, entry: Entry, rows: dict[int, Tensor]) -> Tensor:
    """Return what changes of rows add to a product, (V, N', P)."""
    added = None
    if entry.weight is not None:
        met = _precise(patches(tape, entry))
        added = torch.einsum("vd,ndp->vnp", rows[entry.weight].to(met), met)
    if entry.bias is not None:
        bias = _precise(rows[entry.bias]).reshape(-1, 1, 1)
        shape = tape.values[entry.made].tensor.shape
        places = torch.Size(shape[2:]).numel()
        added = bias.expand(-1, shape[0], places) if added is None else added + bias
    assert added is not None
    return added


def _add_slopes(slopes: dict[int, Tensor], tape: Tape, entry: Entry, answer: Tensor) -> None:
    """Add to the slopes of rows, (R, D) by value, what the slopes at the places of a product say of them."""
    if entry.weight is not None:
        own = torch.einsum("rnp,ndp->rd", answer, patches(tape, entry).to(answer))
        slopes[entry.weight] = slopes[entry.weight] + own if entry.weight in slopes else own
    if entry.bias is not None:
        own = answer.sum((1, 2))[:, None]
        slopes[entry.bias] = slopes[entry.bias] + own if entry.bias in slopes else own


def _of_samples(program: Program, made: int, of_sample: Tensor) -> Tensor:
    """Spread numbers of samples, (..., N), over the first axis of a product, which may hold others beside them."""
    axis = program.axes[made][0]
    sizes = [program.labels.size((label,)) for label in axis]
    given = [size if label == program.sample else 1 for label, size in zip(axis, sizes, strict=True)]
    leading = of_sample.shape[:-1]
    return of_sample.reshape(*leading, *given).expand(*leading, *sizes).reshape(*leading, -1)


def offer_nodes(recording: Recording, block: Block) -> NodePerturbationTier:
    """Return the tier that estimates the costs of a block.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where it cannot, or need not be estimated.
    """
    if block.constant or block.subspace not in {"inputs", "gaussian"} or block.population is not None:
        raise NotOfferedError("its candidates are no directions of rows")
    if block.group["response_grid"] == 0:
        raise NotOfferedError("response_grid=0 asks for exact costs")
    plain = offer_from_tape(recording, block)
    if plain.approximation() or plain.affords_all() or block.group["rank"] is not None:
        raise NotOfferedError("its directions are scored by exact replays, or on a grid")
    entered = recording.entries(block)
    if entered is None or not mixes_changes(recording.taken(), entered[1].program):
        raise NotOfferedError("it does not reach the loss of each sample by products alone")
    return NodePerturbationTier(block, recording)
