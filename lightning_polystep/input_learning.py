"""Which micro-batches the moments of the sites' inputs take in, and how all processes come to the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_polystep.agreement import Agreement
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.input_units import packed, says_hidden, unpacked
from lightning_polystep.particles import Block
from lightning_polystep.sites import Observation
from lightning_polystep.step import learn_inputs

# The moments settle within so many micro-batches; from then on they only follow the drift of hidden layers' inputs.
_EARLY_BATCHES = 20
# Where more inputs than these come out of other layers, only every third early step is measured, and half as many with
# every five that were: the product of 1,000 with themselves at each of 25 steps of time, and its eigenvectors, took
# half of a step.
_MANY_INPUTS, _EARLY_PERIOD, _RARER_AFTER = 512, 3, 5
# So many micro-batches of an early step show enough of its inputs; more shards would only make the message longer.
_EARLY_SHARDS = 4
# Of later steps every fifth is measured, on its first micro-batch; and every twentieth once a basis has held for so
# many batches, as that of images does: the product of 785 inputs with themselves took a tenth of each step.
_PERIOD, _LONG_PERIOD = 5, 20
_LONG_HELD = 8


class InputLearning:
    """Folds what commit passes show of the sites' inputs into the optimizer's running statistics.

    Micro-batches are counted over all shards of a step, and taken in by that order. Processes that divide a batch tell
    one another what each has seen, so that all learn what one process would that ran their micro-batches in turn.

    Args:
        optimizer: Its statistics learn.
        agreement: With the other processes.
    """

    def __init__(self, optimizer: HostedOptimizer, agreement: Agreement) -> None:
        self._optimizer = optimizer
        self._agreement = agreement
        self._blocks: list[Block] = []
        self._waiting: list[dict[str, Tensor]] = []
        self._next = 0

    def follow(self, blocks: Sequence[Block]) -> None:
        """Learn the inputs of these blocks from now on, as far as their subspaces want to know them."""
        self._blocks = [block for block in blocks if block.learns_inputs]

    @property
    def sharded(self) -> bool:
        """Whether the batch is divided, so that what a pass shows is taken in with what the others have seen."""
        return self._agreement.sharded

    @property
    def own_batch(self) -> int:
        """This process's micro-batch, counted over all shards of the step: processes take them in turn."""
        data = self._agreement.layout.data
        return self._optimizer.progress.micro_batch * data.size + data.index

    def measured(self, batch: int) -> set[str]:
        """Return the blocks whose inputs are measured on a micro-batch of this step.

        Args:
            batch: Counted over all shards of the step.
        """
        step, names = self._optimizer.progress.step, set()
        for block in self._blocks:
            known = self._optimizer.statistics.get(block.name)
            if known is None or known.batches < _EARLY_BATCHES or known.doubted:
                dear = known is not None and known.hidden and block.dim > _MANY_INPUTS and not known.doubted
                period = _EARLY_PERIOD << known.batches // _RARER_AFTER if known is not None and dear else 1
                due = batch < _EARLY_SHARDS and step % period == 0
            else:
                due = batch == 0 and step % (_LONG_PERIOD if known.held >= _LONG_HELD else _PERIOD) == 0
            if due:
                names.add(block.name)
        return names

    def take(self, seen: Observation) -> None:
        """Take what this micro-batch has shown, here and on the processes that hold its other shards."""
        data = self._agreement.layout.data
        self._next = self._optimizer.progress.micro_batch * data.size
        moments = {name: packed(*each, hidden=name in seen.hidden) for name, each in seen.take_inputs().items()}
        if not self._agreement.sharded:
            self._waiting = [moments]
            return
        shards = range(self._next, self._next + data.size)
        asked = sum(bool(self.measured(batch)) for batch in shards)
        wanted = [block for block in self._blocks if block.name in self.measured(self._next)]
        exact = any(block.parameters[0].dtype == torch.float64 for block in wanted)
        dtype = torch.float64 if exact else torch.float32
        self._waiting = self._agreement.shards(moments, {block.name: block.dim + 2 for block in wanted}, asked, dtype)

    def learn(self, most: int | None = None) -> None:
        """Fold what was taken into the running statistics.

        Args:
            most: Of so many micro-batches; by default of all that wait.
        """
        for _ in range(len(self._waiting) if most is None else min(most, len(self._waiting))):
            # What a micro-batch before it has settled is not measured on the next one.
            measured, moments = self.measured(self._next), self._waiting.pop(0)
            if self._agreement.sharded:
                moments = {name: moment for name, moment in moments.items() if name in measured}
            parts = {name: unpacked(square) for name, square in moments.items()}
            seen, spreads = ({name: each[place] for name, each in parts.items()} for place in (0, 1))
            learn_inputs(seen, self._optimizer.statistics, spreads)
            for name, square in moments.items():
                self._optimizer.statistics[name].hidden = says_hidden(square)
            self._next += 1
