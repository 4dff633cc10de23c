"""What the processes of a run tell one another in a step, in one sum, and what they make of it, all alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lightning_polystep import guards
from lightning_polystep.fingerprint import mix
from lightning_polystep.hosted import Pending, Progress
from lightning_polystep.parallel import Balance
from lightning_polystep.processes import Processes
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.sites import symmetric

# Multiples of it add up exactly, in any order, as long as sums stay below 2^53 of them (8,192): the number of shards
# that a batch is divided into then changes no bit. A loss in float32 is far coarser.
_GRID = 2.0**-40
_COUNTS = ("weight", "candidates", "samples", "skipped", "objections")


def on_grid(losses: Tensor) -> Tensor:
    """Round losses to multiples of 2^-40, so that their sums do not depend on the order of the terms.

    Args:
        losses: Any shape, float64; what is not finite stays as it is.

    Example:
        >>> a, b, c = on_grid(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
        >>> bool((a + b) + c == a + (b + c)), 0.1 + 0.2 + 0.3 == 0.1 + (0.2 + 0.3)
        (True, False)
    """
    return torch.round(losses / _GRID) * _GRID


@dataclass
class Notes:
    """What one process has seen since the last update.

    Args:
        batches: Fingerprint of its micro-batches; 0 when it saw none.
        losses: Fingerprint of their losses.
        candidates: Candidates scored, by the group.
        samples: Candidates times samples.
        skipped: Micro-batches left out because their loss was not finite.
        objections: Micro-batches left out because the recognised stack did not explain their loss.
    """

    batches: int = 0
    losses: int = 0
    candidates: int = 0
    samples: int = 0
    skipped: int = 0
    objections: int = 0

    def see(self, batch: int, loss: Tensor) -> None:
        """Add a micro-batch.

        Args:
            batch: Its fingerprint.
            loss: The loss of the commit pass.
        """
        self.batches = mix(self.batches, batch)
        self.losses = mix(self.losses, int(loss.detach().double().reshape(-1)[:1].view(torch.int64)))


class Agreement:
    """Makes the same of a step on every process, or stops all of them with the same error.

    Args:
        processes: This process among the others.
        parameters: Returns the fingerprint of the parameters.
        check_every: Steps from one comparison of all parameters to the next.
    """

    def __init__(self, processes: Processes, parameters: Callable[[], int], check_every: int) -> None:
        self.processes = processes
        self.layout = processes.layout
        self.notes = Notes()
        self.balance = Balance(self.layout.candidates.size)
        self._parameters = parameters
        self._check_every = check_every

    @property
    def several(self) -> bool:
        """Whether there is anyone to agree with."""
        return self.layout.world_size > 1

    @property
    def sharded(self) -> bool:
        """Whether the batch is divided."""
        return self.layout.data.size > 1

    def ready(self, finite: bool) -> bool:
        """Tell whether a plan can be made from this micro-batch: its loss must be finite on all processes.

        Raises:
            RuntimeError: When processes of one candidate group have seen different batches.
        """
        if not self.several:
            return finite
        told = self.processes.sum({"marks": self._marks(step=0), "unfit": torch.tensor([float(not finite)])})
        self._check(told["marks"], step=0)
        return not bool(told["unfit"].any())

    def by_any(self, names: list[str], own: Collection[str]) -> frozenset[str]:
        """Return those of some names that any process has; all of them have to call it.

        Args:
            names: The same on all processes.
            own: Those that this one has.
        """
        found = self.slowest([int(name in own) for name in names])
        return frozenset(name for name, one in zip(names, found, strict=True) if one)

    def slowest(self, choices: Sequence[int]) -> list[int]:
        """Return, for each entry, the largest number that any process has."""
        if not self.several:
            return list(choices)
        mine = torch.zeros(self.layout.world_size, len(choices))
        mine[self.layout.rank] = torch.tensor(choices)
        return [int(choice) for choice in self.processes.sum({"choices": mine})["choices"].amax(0)]

    def shards(
        self, own: dict[str, Tensor], sizes: dict[str, int], count: int, dtype: torch.dtype
    ) -> list[dict[str, Tensor]]:
        """Return what the first shards of the batch know, the same list on all processes.

        Args:
            own: Symmetric matrices that this process knows, by name.
            sizes: Rows of all matrices that are asked for.
            count: How many shards are asked.
            dtype: Of the matrices.
        """
        data, candidates = self.layout.data, self.layout.candidates
        message, triangles = {}, {name: _triangle(size) for name, size in sizes.items()}
        for name, places in triangles.items():
            message[name] = torch.zeros(count, 1 + len(places), dtype=dtype)
            if name in own and candidates.index == 0 and data.index < count:
                message[name][data.index, 0] = 1.0
                message[name][data.index, 1:] = own[name].flatten()[places.to(own[name].device)]
        if not message or count < 1:
            return []
        told = self.processes.sum(message, dtype)
        device = next(iter(own.values())).device if own else torch.device("cpu")
        known: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for name, places in triangles.items():
            for shard in range(count):
                if told[name][shard, 0]:
                    square = told[name].new_zeros(sizes[name] ** 2).index_copy_(0, places, told[name][shard, 1:])
                    known[shard][name] = symmetric(square.view(sizes[name], sizes[name])).to(device)
        return known

    def settle(
        self,
        assignments: Sequence[Assignment],
        pending: Pending,
        progress: Progress,
        buffers: Sequence[Tensor] = (),
    ) -> bool:
        """Turn what this process has gathered for a step into what all have, by the step's one collective.

        Args:
            assignments: Those of the plan; they fix the size of the message, whatever a process has to tell.
            pending: Its own share of the costs, zero elsewhere; replaced in place by the sums of all.
            progress: Its counters, to which the work of the others is added.
            buffers: What shards write differently; all take those of the first, as in DistributedDataParallel.

        Returns:
            Whether some process objected to the stack.

        Raises:
            RuntimeError: When candidate groups saw different batches or parameters have drifted apart.
        """
        message = self._message(assignments, pending, progress.step)
        first = float(self.layout.rank == 0)
        message |= {f"buffer {place}": first * buffer.double() for place, buffer in enumerate(buffers)}
        told = self.processes.sum(message)
        self._check(told["marks"], progress.step)
        places = {assignment.block: place for place, assignment in enumerate(assignments)}
        self._take(told, assignments, pending, progress)
        for proposal in pending.proposals:
            place = places[proposal.block]
            assignments[place].learn_seconds(float(told["seconds"][:, place].sum()), proposal)
        self.balance.learn(told["seconds"].sum(1).tolist())
        for assignment, demoted in zip(assignments, told["demoted"].tolist(), strict=True):
            if demoted:
                assignment.step_down(guards.FAILED_ELSEWHERE)
        for place, buffer in enumerate(buffers):
            buffer.copy_(told[f"buffer {place}"])
        self.processes.stopping = bool(told["stop"])
        self.notes = Notes()
        return pending.objections > 0

    def gather(
        self, assignments: Sequence[Assignment], pending: Pending, progress: Progress
    ) -> tuple[Pending, Progress]:
        """Return what all processes together have gathered and counted in the middle of a step, and leave it there.

        Args:
            assignments: Those of the plan.
            pending: This process's own share.
            progress: Its counters.

        Raises:
            RuntimeError: As :meth:`settle` does.
        """
        told = self.processes.sum(self._message(assignments, pending, progress.step))
        self._check(told["marks"], progress.step)
        whole, counted = replace(pending), replace(progress)
        self._take(told, assignments, whole, counted)
        return whole, counted

    def _take(
        self, told: dict[str, Tensor], assignments: Sequence[Assignment], pending: Pending, progress: Progress
    ) -> None:
        """Put the sums of all processes in the place of what this one has gathered and counted."""
        places = {assignment.block: place for place, assignment in enumerate(assignments)}
        costs = told["costs"].split([assignment.most_candidates for assignment in assignments])
        pending.costs = [costs[places[p.block]][: p.candidates] for p in pending.proposals]
        pending.incumbents = [told["incumbents"][places[p.block]] for p in pending.proposals]
        counts = dict(zip(_COUNTS, told["counts"].tolist(), strict=True))
        pending.weight = counts["weight"]
        pending.objections = int(counts["objections"])
        progress.candidates += int(counts["candidates"]) - self.notes.candidates
        progress.samples += int(counts["samples"]) - self.notes.samples
        progress.skipped += int(counts["skipped"]) - self.notes.skipped

    def _message(self, assignments: Sequence[Assignment], pending: Pending, step: int) -> dict[str, Tensor]:
        # Of what all processes of a candidate group know, only the first one tells.
        speaks = float(self.layout.candidates.index == 0)
        blocks = len(assignments)
        device = pending.costs[0].device if pending.costs else torch.device("cpu")
        costs = torch.zeros(sum(a.most_candidates for a in assignments), dtype=torch.float64, device=device)
        incumbents = torch.zeros(blocks, dtype=torch.float64, device=device)
        seconds = torch.zeros(self.layout.candidates.size, blocks)
        places = {assignment.block: place for place, assignment in enumerate(assignments)}
        slots = costs.split([assignment.most_candidates for assignment in assignments])
        for index, proposal in enumerate(pending.proposals):
            place = places[proposal.block]
            slots[place][: proposal.candidates] = pending.costs[index]
            incumbents[place] = speaks * pending.incumbents[index]
            seconds[self.layout.candidates.index, place] = pending.seconds[index]
        notes = self.notes
        counts = (pending.weight, notes.candidates, notes.samples, notes.skipped, notes.objections + pending.objections)
        return {
            "costs": costs,
            "incumbents": incumbents,
            "seconds": seconds,
            "demoted": torch.tensor([float(assignment.failed) for assignment in assignments]),
            "counts": speaks * torch.tensor(counts, dtype=torch.float64),
            "marks": self._marks(step),
            "stop": torch.tensor(float(self.processes.asked_to_stop)),
        }

    def _marks(self, step: int) -> Tensor:
        """Return one row per process, this one's filled in: fingerprints of parameters, batches and losses."""
        marks = torch.zeros(self.layout.world_size, 3, dtype=torch.float64)
        parameters = self._parameters() if step % self._check_every == 0 else 0
        own = (parameters, self.notes.batches, self.notes.losses)
        marks[self.layout.rank] = torch.tensor(own, dtype=torch.float64)
        return marks

    def _check(self, marks: Tensor, step: int) -> None:
        parameters, batches, losses = marks.T.tolist()
        leaders = [self.layout.group_of(rank) * self.layout.candidates.size for rank in range(len(marks))]
        rules = [
            (parameters, [0] * len(marks), guards.DRIFTED_REPLICAS),
            (batches, leaders, guards.DIFFERENT_BATCHES),
            (losses, leaders, guards.DIFFERENT_LOSSES),
        ]
        for seen, of, message in rules:
            others = [rank for rank, leader in enumerate(of) if seen[rank] != seen[leader]]
            if others:
                ranks = ", ".join(map(str, others))
                raise RuntimeError(message.format(step=step, ranks=ranks, leader=of[others[0]]))


@lru_cache(maxsize=16)
def _triangle(size: int) -> Tensor:
    """Return the places of the lower triangle in a square matrix that is laid flat."""
    row, column = torch.tril_indices(size, size)
    return row * size + column
