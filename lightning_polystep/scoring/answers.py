r"""Score: how the units of a layer answer when all of them are shifted, up to where they are mixed.

Two replays shift every unit by :math:`\rho_{np}` at its places p, up and down; they end at the next product. What unit
u passes on at place q of sample n differs by :math:`2 a_{nuq}` between the two, thresholds, resets and poolings
included. With :math:`w_{nuq}`, what that is worth to the loss, the slope of the loss at place p of the row is

.. math:: o_{nup} = \sum_{q \in N(p)} \frac{w_{nuq}\, a_{nuq}}{\sum_{p' : q \in N(p')} \rho_{np'}}.

N(p) are the places that p reaches. They are found by touching one place after the other, and not assumed.

Behind a batch normalisation, which keeps its statistics in these replays, a shift or a scaling of all samples and
places alike would do nothing. So what slopes say of these two is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.scoring.slopes import half_difference, precise
from lightning_polystep.tape import (
    Dense,
    Entries,
    Entry,
    Layout,
    NotOnTapeError,
    Program,
    Relation,
    Stage,
    Tape,
    is_batch_norm,
)

# To see which places reach which they are shifted by so many standard deviations.
_FAR = 3.0
# Places that are touched one after the other: a layer of more is too large.
_MOST_PLACES = 512


@dataclass(eq=False)
class Answers:
    """How units of a block answer.

    Args:
        program: What lies behind the block's products.
        products: The products that the block's rows enter.
        layouts: Of these products, by key.
        sinks: What units pass on, and how it is laid out.
        local: Leads from the products to there.
        related: Which product, by key, reaches which sink.
        places: By sink, which places reach which.
        normalised: What products make that go into a batch normalisation.
    """

    program: Program
    products: list[Entry]
    layouts: dict[object, Layout]
    sinks: dict[int, Layout]
    local: Dense
    related: set[tuple[object, int]] = field(default_factory=set)
    places: dict[int, Relation] = field(default_factory=dict)
    normalised: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, tape: Tape, entries: Entries) -> Answers:
        """Find out how units of a block answer.

        Args:
            tape: Of a step.
            entries: The products that the block's rows enter.

        Raises:
            NotOnTapeError: Where samples or units are mixed too early, or units have too many places.
        """
        program, products = entries.behind, entries.products
        sinks = dict.fromkeys(
            index
            for step in program.steps
            if step.stage != Stage.UNIT
            for index in program.operation(tape, step.number).operands
            if program.home.get(index, (None,))[0] == Stage.UNIT
        )
        answers = cls(
            program,
            products,
            {entry.key: _layout(tape, program, entry.made) for entry in products},
            {sink: _layout(tape, program, sink) for sink in sinks},
            Dense.of(tape, program, {entry.made for entry in products}, list(sinks)),
        )
        if len(answers.layouts) + sum(answers.layouts[products[0].key].places) > _MOST_PLACES:
            raise NotOnTapeError("its units have too many places")
        operations = [program.operation(tape, step.number) for step in answers.local.steps]
        answers.normalised = {each.operands[0] for each in operations if is_batch_norm(each)}
        answers._see_places(tape)
        return answers

    def shifted(self, tape: Tape, shifts: Mapping[object, Tensor]) -> dict[int, Tensor]:
        """Return what the block's products make when they are shifted up, and when they are shifted down.

        Args:
            tape: Of a step of this structure.
            shifts: By key, as large as what a product makes.

        Returns:
            By what they make, shape (2, ...).
        """
        moved = {}
        for entry in self.products:
            value = tape.values[entry.made].tensor
            shift = shifts[entry.key].to(value)
            moved[entry.made] = torch.stack([value + shift, value - shift])
        return moved

    def slopes(
        self, tape: Tape, typical: Mapping[object, Tensor], reach: Tensor, worth: Mapping[int, Tensor]
    ) -> list[tuple[Entry, Tensor]]:
        """Return the slope of the loss at the places of each unit, (U, N', P) by product.

        Args:
            tape: Of a step of this structure.
            typical: By key, how far a candidate of reach 1 shifts each place, (N', places...).
            reach: How many times as far each unit is shifted, (U,).
            worth: By sink, the slope of the loss by what units pass on.
        """
        wider = {key: reach.to(each).reshape(-1, *[1] * (each.ndim - 1)) for key, each in typical.items()}
        both = self.local.run(
            tape, self.shifted(tape, {key: each[:, None] * wider[key] for key, each in typical.items()})
        )
        radii = {key: self._of_any_unit(self.layouts[key], each) for key, each in typical.items()}
        valued = dict[int, Tensor]()
        for sink, layout in self.sinks.items():
            met = [self.places[sink].to_later(each) for key, each in radii.items() if (key, sink) in self.related]
            total = torch.stack(met).sum(0) if met else reach.new_zeros(())
            answer = half_difference(both[sink]) * worth[sink]
            valued[sink] = layout.apart(answer[None]) * torch.where(total > 0, 1 / total, 0.0)
        slopes = {}
        for key, layout in self.layouts.items():
            places = [self.places[s].to_first(each) for s, each in valued.items() if (key, s) in self.related]
            whole = torch.stack(places).sum(0) if places else reach.new_zeros(1, *layout.laid_out)
            of_unit = layout.back(whole)[0].movedim(1, 0)
            slopes[key] = (of_unit / wider[key].reshape(-1, *[1] * (of_unit.ndim - 1))).reshape(
                len(reach), layout.shape[0], -1
            )
        return [(entry, self._but_for_norms(tape, entry, slopes[entry.key])) for entry in self.products]

    def _but_for_norms(self, tape: Tape, entry: Entry, slopes: Tensor) -> Tensor:
        """Take away what slopes, (U, N', P), say of shifts and scalings that a batch normalisation undoes."""
        if entry.made not in self.normalised:
            return slopes
        flat = slopes.flatten(1)
        made = tape.values[entry.made].tensor.movedim(1, 0).flatten(1).to(flat)
        centred = made - made.mean(1, keepdim=True)
        scale = centred / centred.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        flat = flat - flat.mean(1, keepdim=True)
        return (flat - (flat * scale).sum(1, keepdim=True) * scale).reshape(slopes.shape)

    @staticmethod
    def _of_any_unit(layout: Layout, typical: Tensor) -> Tensor:
        """Lay out shifts that all units share, (1, N, 1, places...)."""
        return layout.apart(typical[None, :, None].expand(1, *layout.shape))[:, :, :1]

    def _see_places(self, tape: Tape) -> None:
        """Find out which places of the units reach which places of what they pass on."""
        draw = torch.Generator().manual_seed(0)
        still: dict[object, Tensor] = {
            entry.key: torch.zeros_like(precise(tape.values[entry.made].tensor)) for entry in self.products
        }
        base = self.local.run(tape, self.shifted(tape, still))
        first = self.products[0].key
        sizes = self.layouts[first].places
        for key in self.layouts:
            hit = self._touched(tape, base, key, torch.ones([1] * len(self.layouts[key].places)), draw)
            self.related |= {(key, sink) for sink, each in hit.items() if bool(each.any())}
        seen = dict[tuple[int, int], dict[int, Tensor]]()
        for axis, size in enumerate(sizes):
            for place in range(size):
                mask = (torch.arange(size) == place).float()
                shape = [size if at == axis else 1 for at in range(len(sizes))]
                seen[axis, place] = self._touched(tape, base, first, mask.reshape(shape), draw)
        for sink, layout in self.sinks.items():
            of_sink = {place: each[sink] for place, each in seen.items()}
            self.places[sink] = Relation.seen(sizes, layout.places, of_sink)

    def _touched(
        self, tape: Tape, base: Mapping[int, Tensor], key: object, mask: Tensor, draw: torch.Generator
    ) -> dict[int, Tensor]:
        """Tell which places of sinks change when some places of the products of a key are shifted far, at random.

        Args:
            tape: Of a step.
            base: What sinks are without a shift.
            key: Of the products.
            mask: 1 at these places; it broadcasts to all.
            draw: Source of randomness.
        """
        shifts = dict[object, Tensor]()
        for entry in self.products:
            layout, value = self.layouts[entry.key], precise(tape.values[entry.made].tensor)
            far = random_signs(layout.shape, draw).to(value) * (_FAR * value.std() + torch.finfo(value.dtype).eps)
            own = mask.to(far).expand(1, *layout.laid_out) if entry.key == key else far.new_zeros(1, *layout.laid_out)
            shifts[entry.key] = far * layout.back(own)[0]
        changed = self.local.run(tape, self.shifted(tape, shifts))
        touched = {}
        for sink, layout in self.sinks.items():
            differs = layout.apart(changed[sink]) != layout.apart(base[sink])
            touched[sink] = differs.flatten(0, 2).any(0)
        return touched


def random_signs(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return signs, int8.

    Args:
        shape: How many.
        draw: Source of randomness, on the CPU.
    """
    return 2 * torch.randint(0, 2, shape, generator=draw, dtype=torch.int8) - 1


def _layout(tape: Tape, program: Program, index: int) -> Layout:
    layout = Layout.of(program, index, tape.values[index].tensor.shape)
    if layout is None:
        raise NotOnTapeError("samples or units are mixed before the next product")
    return layout
