r"""Score: how the units of a layer answer when all of them are shifted, up to where they are mixed.

Two replays shift every unit by :math:`\rho_{np}` at its places p, up and down; they end at the next product. What unit
u passes on at place q of sample n differs by :math:`2 a_{nuq}` between the two, thresholds, resets and poolings
included. With :math:`w_{nuq}`, what that is worth to the loss, the slope of the loss at place p of the row is

.. math:: o_{nup} = \sum_q \frac{k_{pq}\, w_{nuq}\, a_{nuq}}{\sum_{p'} k_{p'q}\, \rho_{np'}}.

:math:`k_{pq}` is how strongly p reaches q: 0 outside of a window of a pooling or before a step of time, less and less
afterwards where a membrane leaks. It is found by touching one place after the other on the first batch.

Normalisations keep their statistics in these replays, and so stay within units. In truth a shift or a scaling of all
that is normalised together would do nothing. So what slopes by what goes in say of these two is taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.scoring.passing import Passing, recalled, remembered
from lightning_polystep.scoring.precision import half_difference, precise
from lightning_polystep.tape import (
    Dense,
    Entries,
    Entry,
    Layout,
    NotOnTapeError,
    Operation,
    Program,
    Stage,
    Tape,
    is_looked_at_apart,
    told_afterwards,
)

# To see which places reach which they are shifted by so many standard deviations.
_FAR = 1.0
# Places that are touched one after the other: a layer of more is too large.
_MOST_PLACES = 512


@dataclass(eq=False, repr=False)
class Answers:
    """How units of a block answer.

    Args:
        program: What lies behind the block's products.
        products: The products that the block's rows enter.
        layouts: Of these products, by key.
        sinks: What units pass on, and how it is laid out.
        local: Leads from the products to there.
        first: What products go into, where that is one thing.
        apart: Numbers of the operations that take sinks in though they mix no units, on the tape.
        memory: How strongly places reach others, which a checkpoint keeps: it is written into.
        evenly: Whether all that are reached are taken to be reached alike, which all batches agree on.
    """

    program: Program
    products: list[Entry]
    layouts: dict[object, Layout]
    sinks: dict[int, Layout]
    local: Dense
    first: dict[int, Operation]
    apart: set[int]
    memory: dict[str, Tensor]
    evenly: bool

    @classmethod
    def of(
        cls, tape: Tape, entries: Entries, memory: dict[str, Tensor] | None = None, *, evenly: bool = False
    ) -> Answers:
        """Find out how units of a block answer.

        Args:
            tape: Of a step.
            entries: The products that the block's rows enter.
            memory: How strongly places reach others, where that was found before; it is written into.
            evenly: Whether all that are reached are taken to be reached alike, which all batches agree on.

        Raises:
            NotOnTapeError: Where samples or units are mixed too early, or units have too many places.
        """
        program, products = entries.behind, entries.products
        sinks, first, apart = _sinks(tape, program, {entry.made for entry in products})
        answers = cls(
            program,
            products,
            {entry.key: _layout(tape, program, entry.made) for entry in products},
            {sink: _layout(tape, program, sink) for sink in sinks},
            Dense.of(tape, program, {entry.made for entry in products}, sinks),
            first,
            apart,
            {} if memory is None else memory,
            evenly,
        )
        if len({layout.laid_out for layout in answers.layouts.values()}) > 1:
            raise NotOnTapeError("its products are laid out in different ways")
        if len(answers.layouts) + sum(answers.layouts[products[0].key].places) > _MOST_PLACES:
            raise NotOnTapeError("its units have too many places")
        answers.passing(tape)
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
        self,
        tape: Tape,
        typical: Mapping[object, Tensor],
        reach: Tensor,
        worth: Mapping[int, Tensor],
        runs: int = 0,
    ) -> list[tuple[Entry, Tensor]]:
        """Return the slope of the loss at the places of each unit, (U, N', P) by product.

        Args:
            tape: Of a step of this structure.
            typical: By key, how far a candidate of reach 1 shifts each place, (N', places...).
            reach: How many times as far each unit is shifted, (U,).
            worth: By sink, the slope of the loss by what units pass on.
            runs: How many steps came before, which decides whether compiled loops pay.
        """
        wider = {key: reach.to(each).reshape(-1, *[1] * (each.ndim - 1)) for key, each in typical.items()}
        both = self.local.run(
            tape,
            self.shifted(tape, {key: each[:, None] * wider[key] for key, each in typical.items()}),
            runs=runs,
        )
        if self._has_one_place:
            return self._slopes_of_one_place(tape, typical, wider, both, worth)
        radii = torch.stack([self._of_any_unit(self.layouts[key], each)[0] for key, each in typical.items()])
        whole = reach.new_zeros(len(radii), *next(iter(self.layouts.values())).laid_out)
        for sinks, known, places in self.passing(tape):
            strength = known.to(radii)
            total = places.to_later(torch.tensordot(strength.T, radii, 1))
            answers = [self.sinks[s].apart((half_difference(both[s]) * worth[s])[None])[0] for s in sinks]
            valued = torch.stack(answers) * torch.where(total > 0, 1 / total, 0.0)
            whole += places.to_first(torch.tensordot(strength, valued, 1))
        slopes = {}
        for each, (key, layout) in zip(whole, self.layouts.items(), strict=True):
            of_unit = layout.back(each[None])[0].movedim(1, 0)
            slopes[key] = (of_unit / wider[key].reshape(-1, *[1] * (of_unit.ndim - 1))).reshape(
                len(reach), layout.shape[0], -1
            )
        return [(entry, self._told_afterwards(tape, entry, slopes[entry.key])) for entry in self.products]

    @property
    def _has_one_place(self) -> bool:
        """Whether a sample has one place of each unit, before and behind, as at a single step of time."""
        laid_out = {layout.laid_out for layout in (*self.layouts.values(), *self.sinks.values())}
        return len(self.layouts) == len(laid_out) == 1 and len(next(iter(laid_out))) == 2

    def _slopes_of_one_place(
        self,
        tape: Tape,
        typical: Mapping[object, Tensor],
        wider: Mapping[object, Tensor],
        both: Mapping[int, Tensor],
        worth: Mapping[int, Tensor],
    ) -> list[tuple[Entry, Tensor]]:
        """Return the same where nothing has to be shared out between places."""
        ((key, layout),) = self.layouts.items()
        valued = [
            sink.apart((half_difference(both[index]) * worth[index])[None])[0] for index, sink in self.sinks.items()
        ]
        radii = self._of_any_unit(layout, typical[key])[0]
        whole = torch.stack(valued).sum(0) if len(valued) > 1 else valued[0]
        reach = wider[key].flatten().to(whole)
        slopes = (torch.where(radii > 0, whole / radii, 0.0) / reach).T.reshape(len(reach), layout.shape[0], -1)
        return [(entry, self._told_afterwards(tape, entry, slopes)) for entry in self.products]

    def _told_afterwards(self, tape: Tape, entry: Entry, slopes: Tensor) -> Tensor:
        """Return what slopes, (U, N', P), are in view of the norm or the pooling that comes first."""
        operation = self.first.get(entry.made)
        if operation is None:
            return slopes
        made = slopes.movedim(1, 0).reshape(tape.values[entry.made].tensor.shape)
        return told_afterwards(tape, operation, made).movedim(1, 0).reshape(slopes.shape)

    @staticmethod
    def _of_any_unit(layout: Layout, typical: Tensor) -> Tensor:
        """Lay out shifts that all units share, (1, N, 1, places...)."""
        return layout.apart(typical[None, :, None].expand(1, *layout.shape))[:, :, :1]

    def passing(self, tape: Tape) -> list[Passing]:
        """Return how strongly places reach others, for sinks that are laid out alike together; found out once.

        Args:
            tape: Of a step of this structure.
        """
        alike = dict[tuple[int, ...], list[int]]()
        for sink, layout in self.sinks.items():
            alike.setdefault(layout.laid_out, []).append(sink)
        groups, sizes = list(alike.values()), self.layouts[self.products[0].key].places
        later = [self.sinks[sinks[0]].places for sinks in groups]
        known = recalled(self.memory, groups, len(self.layouts), sizes, later)
        if known is None:
            known = self._see_places(tape, groups)
            remembered(self.memory, known)
        return known

    def _see_places(self, tape: Tape, groups: list[list[int]]) -> list[Passing]:
        draw = torch.Generator().manual_seed(0)
        base = self._run_once(tape, {})
        first = self.products[0].key
        sizes = self.layouts[first].places
        everywhere = torch.ones([1] * len(sizes))
        hit = [self._touched(tape, base, key, everywhere, draw) for key in self.layouts]
        seen = dict[tuple[int, int], dict[int, Tensor]]()
        for axis, size in enumerate(sizes):
            for place in range(size):
                mask = (torch.arange(size) == place).float()
                shape = [size if at == axis else 1 for at in range(len(sizes))]
                seen[axis, place] = self._touched(tape, base, first, mask.reshape(shape), draw)
        return [Passing.seen(sinks, sizes, self.sinks[sinks[0]].places, hit, seen) for sinks in groups]

    def _run_once(self, tape: Tape, shifts: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return sinks, (1, ...), where some products make more; rounded alike whatever is shifted."""
        given = {}
        for entry in self.products:
            value = tape.values[entry.made].tensor
            given[entry.made] = (value + shifts[entry.made].to(value) if entry.made in shifts else value)[None]
        return self.local.run(tape, given)

    def _touched(
        self, tape: Tape, base: Mapping[int, Tensor], key: object, mask: Tensor, draw: torch.Generator
    ) -> dict[int, Tensor]:
        """Tell how much places of sinks change when some places of the products of a key are shifted.

        Args:
            tape: Of a step.
            base: What sinks are without a shift.
            key: Of the products.
            mask: 1 at these places; it broadcasts to all.
            draw: Source of randomness.
        """
        samples, units, *places = self.layouts[key].laid_out
        made = torch.stack([precise(tape.values[entry.made].tensor).std() for entry in self.products])
        signs = random_signs((samples, units), draw).reshape(samples, units, *[1] * len(places))
        far = signs.to(made) * (_FAR * made.mean() + torch.finfo(made.dtype).eps)
        shift = self.layouts[key].back((far * mask.to(far)).expand(1, *self.layouts[key].laid_out))[0]
        changed = self._run_once(tape, {entry.made: shift for entry in self.products if entry.key == key})
        touched = {}
        for sink, layout in self.sinks.items():
            differs = layout.apart(precise(changed[sink]) - precise(base[sink]))
            strength = differs.abs().flatten(0, 2).mean(0).nan_to_num()
            touched[sink] = (strength > 0).to(strength) if self.evenly else strength
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


def _sinks(tape: Tape, program: Program, made: set[int]) -> tuple[list[int], dict[int, Operation], set[int]]:
    """Return what units pass on, what comes first, and numbers of operations within units that take something in.

    What comes first is the only thing that what products make goes into: norms and poolings are told of afterwards
    there, and taken apart anywhere else.
    """
    steps = [(step, program.operation(tape, step.number)) for step in program.steps]
    uses = Counter(index for _, operation in steps for index in set(operation.operands))
    first, apart, live, sinks = dict[int, Operation](), set[int](), set(made), dict[int, None]()
    for step, operation in steps:
        taken = [index for index in operation.operands if index in live]
        if not taken:
            continue
        is_first = taken[0] in made and uses[taken[0]] == 1
        within = step.stage == Stage.UNIT
        if within and is_looked_at_apart(operation, is_first=is_first):
            apart.add(step.number)
        if within and step.number not in apart:
            live.update(index for index in operation.outputs if index is not None)
            if is_first:
                first[taken[0]] = operation
        else:
            sinks.update(dict.fromkeys(taken))
    return list(sinks), first, apart
