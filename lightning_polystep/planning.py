"""Plan: how the candidates of each block are going to be scored, found out on the first micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from lightning_polystep.commit_pass import CommitPass
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.in_turn import IN_TURN
from lightning_polystep.lookups import follow_lookups
from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.proposing import Proposing
from lightning_polystep.scoring.plan import Plan, make_plan
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.providers import Evaluation, providers_of
from lightning_polystep.scoring.reading import Reading
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.trained import Trained


@dataclass(frozen=True)
class Planning:
    """Makes plans.

    Args:
        optimizer: Whose candidates are scored.
        trained: What candidates change.
        commit_pass: What the step was seen to do.
        proposing: Makes the candidates on which ways of scoring are tried.
        evaluation: Which of them are tried.
        memory_budget: Bytes that the activations of a chunk of candidates may take.
        max_candidates: Of a step; None for as many as cost a few steps of a gradient.
    """

    optimizer: HostedOptimizer
    trained: Trained
    commit_pass: CommitPass
    proposing: Proposing
    evaluation: Evaluation
    memory_budget: int
    max_candidates: int | None

    def make(self, probe: Probe) -> Plan:
        """Return a plan; all processes have to ask for it together.

        Args:
            probe: Of the micro-batch.
        """
        statistics = self.optimizer.statistics
        # Trial proposals may refresh a basis, which in the middle of an accumulation window is the next step's to do.
        known = {name: replace(each) for name, each in statistics.items()}
        self._record(probe)
        self._find_signs(known)
        self._settle_blocks(probe)
        plan = self._with_tiers(probe)
        if self.optimizer.importance_sampling:
            plan.note_sampling(squares=self.trained.recognised.squares)
        plan.held = self.trained.held()
        plan.count_candidates(statistics)
        statistics.update(known)
        return plan

    def _record(self, probe: Probe) -> None:
        """Record the step where it ran without being recorded."""
        if self.commit_pass.recording.tape is None and self.evaluation != "loop":
            self.commit_pass.recording.record(probe)

    def _find_signs(self, known: dict[str, InputStatistics]) -> None:
        """Let weights be flipped one by one where the tape shows that only their signs matter; not in a stack.

        Nor where no estimate can tell of all flips, for want of scores and of losses of samples: a few exact ones say
        too little.
        """
        recording = self.commit_pass.recording
        if recording.tape is None or self.trained.recognised.holds:
            return
        reading = Reading(recording)

        def is_flipped(block: Block) -> bool:
            if not reading.acts_by_signs(block):
                return False
            return Scores.of(recording) is not None or recording.entries(block) is not None

        learning = {block.name for block in self.trained.blocks if block.learns_inputs}
        self.trained.blocks = self.optimizer.with_signs(self.trained.blocks, is_flipped)
        for gone in learning - {block.name for block in self.trained.blocks if block.learns_inputs}:
            known.pop(gone, None)
            self.optimizer.statistics.pop(gone, None)

    def _settle_blocks(self, probe: Probe) -> None:
        """Say of each block what this micro-batch shows of it: random directions, rows that are read, turns."""
        seen = self.commit_pass.seen
        seen.settle(self.trained.blocks, self.optimizer.statistics)
        for block in self.trained.blocks:
            if self.optimizer.moves_in_turn(block):
                block.remark = IN_TURN
            follow_lookups(block, self.proposing.asked(seen, block), probe)

    def _with_tiers(self, probe: Probe) -> Plan:
        """Try the ways of scoring."""
        recording, binding = self.commit_pass.recording, self.optimizer.binding
        plan = make_plan(
            self.trained.blocks,
            probe,
            partial(self.proposing.of_block, self.commit_pass.seen),
            providers_of(self.trained.module, self.trained.recognised, recording, self.evaluation),
            memory_budget=self.memory_budget,
            max_candidates=self.max_candidates,
            known_tiers=binding.loaded_tiers,
            agree=self.proposing.agreement.slowest,
        )
        binding.loaded_tiers = {}
        return plan
