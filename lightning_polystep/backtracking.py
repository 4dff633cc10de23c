r"""Move: how far estimated costs are followed is decided by the loss.

Where costs are estimates (:mod:`~lightning_polystep.scoring.unit_response`), no forward pass has seen the candidates.
So their joint move :math:`d` is tried before it is made: the step is run again at :math:`\theta + s d`, by what was
recorded of it, and s is halved while the loss of the batch is larger there by a tenth than at :math:`\theta`, down to
1/16. The next step begins with twice the share that this one came to, 1 at most. That is backtracking line search, with
the plainest condition that there is; where steps are short enough, s stays 1 and every fourth step is tried.

Blocks whose candidates were scored by forward passes move as they are told: the loss has decided on them already.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_polystep.tape import NotOnTapeError, Rerun, Tape

if TYPE_CHECKING:
    from lightning_polystep.agreement import Agreement
    from lightning_polystep.hosted import Figures, HostedOptimizer
    from lightning_polystep.scoring.plan import Plan
    from lightning_polystep.scoring.taped import Recording

_MOST_HALVINGS = 4
# By so much a move may raise the loss of its batch. Short steps in numbers of few bits go up as often as down, by a
# little: to shorten these too cost half a point of a LeNet of 4 bits, and what runs away goes up by far more.
_TOLERATED = 0.1
# After so many moves in a row that were made whole, every so-many-th step is tried.
_TRUSTED_AFTER, _THEN_EVERY = 16, 4
# By how much a loss may differ when the same operations compute it again, as a share of it and in all.
_ROUNDING = (1e-3, 1e-5)
_STATE, _SHARE, _WHOLE = "backtracking", "share", "whole moves in a row"

_DECIDES = (
    "moves by estimates are halved while they raise the loss of their batch by a tenth; those of several batches "
    "are not (backtracking)"
)
_MIXED = "moves by estimates are made whole, because some groups climb and others descend (backtracking)"
_SHARDED = "moves by estimates are made whole, because no process has the whole batch to try them on (backtracking)"
_NOT_DECIDED = (
    "How far a step goes is not decided by the loss, because the step cannot be run again from its tape ({}): costs "
    "that are estimates are followed as they are. PolyStep(backtracking=False) says that this is meant."
)


class Backtracking:
    """Tries the joint move of blocks whose costs are estimates, and shortens it.

    Args:
        optimizer: Whose moves they are; it keeps, with its checkpoint, how far the last one went.
        agreement: With the other processes.
    """

    def __init__(self, optimizer: HostedOptimizer, agreement: Agreement) -> None:
        self._optimizer = optimizer
        self._agreement = agreement
        self._tape: Tape | None = None
        self._loss = 0
        self._followed: list[nn.Parameter] = []
        self._known: dict[object, Any] = {}

    def note(self, plan: Plan) -> None:
        """Say in a plan how the loss decides on its moves.

        Args:
            plan: How candidates are scored.
        """
        if self._optimizer.backtracking and any(each.tier.follows_estimates for each in plan.assignments):
            plan.deciding = _SHARDED if self._agreement.sharded else _DECIDES if self._sign else _MIXED

    def keep(self, recording: Recording, plan: Plan | None) -> None:
        """Take note of what the step did, if it is to decide on its move.

        A step of several micro-batches, here or on other processes, has none that could decide on it.

        Args:
            recording: Of the micro-batch that was scored last.
            plan: How its candidates were scored.
        """
        self._tape = None
        if not self._optimizer.backtracking or plan is None or recording.tape is None or recording.loss is None:
            return
        if self._optimizer.progress.micro_batch > 1 or self._agreement.sharded or not (self._sign and self._is_due()):
            return
        self._followed = [
            p for a in plan.assignments if a.tier.follows_estimates for p in a.block.parameters if p.requires_grad
        ]
        if self._followed:
            self._tape, self._loss, self._known = recording.tape, recording.loss, recording.layers

    def decided(self, update: Callable[[], Figures]) -> Figures:
        """Make a move as far as the loss says.

        Args:
            update: Makes it whole, and returns figures for the log.

        Returns:
            These, with the share of it that was made.
        """
        tape, self._tape = self._tape, None
        path = None if tape is None else self._path(tape)
        if tape is None or path is None:
            return update()
        moved = [parameter for parameter in self._followed if id(parameter) in tape.leaves]
        before = [parameter.detach().clone() for parameter in moved]
        report = update()
        after = [parameter.detach().clone() for parameter in moved]
        share = self._largest_share(tape, path, moved, before, after)
        if share < 1:
            kept_back = sum(float((b - a).double().square().sum()) for b, a in zip(before, after, strict=True))
            norm = float(report.get("step_norm", 0.0))
            report["step_norm"] = math.sqrt(max(0.0, norm**2 - (1 - share**2) * kept_back))
        return report | {"step_share": share}

    @property
    def _sign(self) -> float:
        """1 where the loss is to go down, -1 where up; 0 where it is to do both."""
        up = {bool(group.get("maximize")) for group in self._optimizer.param_groups}
        return 0.0 if len(up) > 1 else -1.0 if up == {True} else 1.0

    def _is_due(self) -> bool:
        return self._told(_WHOLE) < _TRUSTED_AFTER or self._optimizer.progress.step % _THEN_EVERY == 0

    def _told(self, name: str) -> float:
        """Return what the last step has left, also in another run."""
        known = self._optimizer.learned.get(_STATE, {}).get(name)
        return {_SHARE: 1.0, _WHOLE: 0.0}[name] if known is None else float(known)

    def _path(self, tape: Tape) -> Rerun | None:
        """Return how the loss comes about; None, with a warning, where running that again gives another."""
        key = (tape.structure(), self._loss, _STATE)
        if key not in self._known:
            self._known[key] = None
            try:
                path = Rerun.of(tape, self._trained(tape), self._loss)
                again, known = path.run(tape, {}), tape.values[self._loss].tensor
                if not torch.allclose(again.double(), known.double(), rtol=_ROUNDING[0], atol=_ROUNDING[1]):
                    raise NotOnTapeError(f"its loss is then {float(again):.4g} instead of {float(known):.4g}")
                self._known[key] = path
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, NotOnTapeError) as error:
                if _STATE not in self._optimizer.binding.warned:
                    self._optimizer.binding.warned.add(_STATE)
                    warnings.warn(_NOT_DECIDED.format(str(error).partition("\n")[0]), stacklevel=4)
        found: Rerun | None = self._known[key]
        return found

    def _trained(self, tape: Tape) -> dict[int, Tensor]:
        """Return the parameters that the step reads, as they are now, by value."""
        parameters = (each for group in self._optimizer.param_groups for each in group["params"])
        return {tape.leaves[id(each)]: each.detach() for each in parameters if id(each) in tape.leaves}

    def _largest_share(
        self, tape: Tape, path: Rerun, moved: list[nn.Parameter], before: list[Tensor], after: list[Tensor]
    ) -> float:
        """Return how much of a move is made: the most that does not raise the loss, the same on all processes."""
        known, given = self._sign * float(tape.values[self._loss].tensor), self._trained(tape)
        most = known + _TOLERATED * abs(known) + _ROUNDING[1]
        start = round(-math.log2(min(1.0, 2 * self._told(_SHARE))))
        for halvings in range(start, _MOST_HALVINGS + 1):
            _go(moved, before, after, 0.5**halvings)
            if self._sign * float(path.run(tape, given)) <= most:  # which NaN is not
                break
        (agreed,) = self._agreement.slowest([halvings])
        share = 0.5**agreed
        if agreed != halvings:
            _go(moved, before, after, share)
        whole = self._told(_WHOLE) + 1 if share == 1 else 0.0
        self._optimizer.learned.setdefault(_STATE, {}).update(
            {_SHARE: torch.tensor(share), _WHOLE: torch.tensor(whole)}
        )
        return share


def _go(moved: list[nn.Parameter], before: list[Tensor], after: list[Tensor], share: float) -> None:
    """Set parameters to a share of the way, and to the very bits of its end where that is all of it."""
    for parameter, start, end in zip(moved, before, after, strict=True):
        parameter.copy_(end if share == 1 else torch.lerp(start, end, share))
