r"""Score candidates that shift one number of each sample: its loss is found at a few shifts, others are interpolated.

A candidate of row u that moves in direction d shifts the pre-activation of unit u on sample n by
:math:`s = r_u\, d_v \cdot x_n`, with directions that all rows share. Whatever stands behind the unit, the loss of the
sample is then a function of that one number, :math:`f_{un}(s)`. A replay of the tape finds it at a few nodes
:math:`r_u a_{gn}`, on both sides of 0, where nothing changes; a direction costs a sum of look-ups,

.. math:: c_{uv} = \sum_n f_{un}(r_u s_{vn}) \approx \sum_n \sum_g h_g(s_{vn})\, f_{un}(r_u a_{gn}) ,

with the hat functions h of linear interpolation. That is one product of matrices for all rows, so a step affords as
many directions as the inputs span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.row_tier import RowTier
from lightning_polystep.scoring.taped import Recording, TapeTier, offer_tape
from lightning_polystep.tape import Blend, mixes_changes

# Where nothing else is asked for: one node on each side, and no change between them.
_USUAL_NODES = 3
# Where the only node of a side is, in parts of the largest shift of a sample; of several the last is at that shift.
_ONLY = 0.5
# Nodes lie closer to 0, where most shifts are.
_CROWDING = 1.7


def places_of(nodes: int) -> list[float]:
    """Return where the nodes of one side are, in parts of the largest shift.

    Args:
        nodes: Of both sides, with 0, at least 3.

    Example:
        >>> [round(place, 2) for place in places_of(5)]
        [0.31, 1.0]
    """
    each_side = (nodes - 1) // 2
    if each_side == 1:
        return [_ONLY]
    return [(place / each_side) ** _CROWDING for place in range(1, each_side + 1)]


def lay_nodes(shifts: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Lay a grid for each sample over the shifts of all directions.

    Beyond the outermost node the line goes on.

    Args:
        shifts: Of each direction and sample, (V, N).
        nodes: Of the grid, with 0, at least 3.

    Returns:
        The nodes but for 0, (G, N), and how much each of them counts for each shift, (V, G, N).

    Example:
        >>> nodes, weights = lay_nodes(torch.tensor([[2.0], [0.5], [-1.0]]), 3)
        >>> nodes.tolist()
        [[1.0], [-1.0]]
        >>> weights[:, :, 0].tolist()
        [[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]]
    """
    largest = shifts.abs().amax(0)
    share = shifts / largest.clamp(min=torch.finfo(shifts.dtype).tiny)
    places = places_of(nodes)
    hats = []
    for side in (share, -share):
        for below, at, above in zip([0.0, *places], places, [*places[1:], None], strict=False):
            rising = (side - below) / (at - below)
            hat = rising if above is None else torch.minimum(rising, (above - side) / (above - at))
            hats.append(hat.clamp(min=0))
    both = torch.tensor([*places, *(-place for place in places)]).to(largest)
    return both[:, None] * largest, torch.stack(hats, 1)


@dataclass
class GridTier(RowTier):
    """Replays a few shifts of each row, and interpolates its candidates.

    Args:
        nodes: Of the grid, with 0.
    """

    nodes: int = field(default=_USUAL_NODES, kw_only=True)

    @property
    def replays_of_row(self) -> int:
        """One for each node but 0."""
        return 2 * len(places_of(self.nodes))

    def losses_of_rows(self, proposal: Proposal, probe: Probe, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the losses of all candidates of some rows, for each chunk, in their order, float64."""
        script = self.recording.script(self.block)
        nodes, weights = lay_nodes(self.shifts_of_step(script, proposal)[script.products[0].made], self.nodes)
        blend, replays = Blend(weights.double()), len(proposal.rows) * len(nodes)
        for places in chunks:
            rows = proposal.rows[places].repeat_interleave(len(nodes))
            moved = (proposal.reach[places, None, None] * nodes).flatten(0, 1)[:, :, None]
            shifts = {product.made: moved for product in script.products}
            yield self.replayed(script, probe, replays, rows, {}, shifts, blend)

    def approximation(self) -> str:
        """Say what is approximated."""
        return f"interpolated between {self.replays_of_row + 1} responses"


def offer_from_tape(recording: Recording, block: Block) -> TapeTier:
    """Return the tier that scores a block from the tape: on a grid where that can be, and saves something.

    Args:
        recording: The commit pass.
        block: The parameters.

    Raises:
        NotOfferedError: Where the tape does not carry it.
    """
    plain, nodes = offer_tape(recording, block), block.group["response_grid"]
    if nodes == 0 or (nodes is None and plain.affords_all()):
        return plain
    if not _shifts_one_number(recording, block):
        return plain
    return GridTier(block, recording, nodes=nodes or _USUAL_NODES)


def _shifts_one_number(recording: Recording, block: Block) -> bool:
    """Tell whether all that a candidate does is to shift one number of each sample."""
    script, tape = recording.script(block), recording.taken()
    program = script.program
    apart = {program.axes[product.made][0] for product in script.products}
    inputs = {(product.inputs, product.columns) for product in script.products}
    one = script.shifts_only and len(inputs) == 1 and apart == {(program.sample,)}
    return one and mixes_changes(tape, program)
