"""PolyStep, the optimizer: parameter groups, schedules, momentum and state; transport and move, once per step."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence, Set
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from lightning_polystep import guards
from lightning_polystep.blocks import find_blocks, flipped_one_by_one
from lightning_polystep.far_rows import Strides
from lightning_polystep.hosted import Figures, HostedOptimizer, Pending
from lightning_polystep.hyperparameters import described, restored
from lightning_polystep.in_turn import Moved, Turn
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.reused_costs import ReusedCosts
from lightning_polystep.schedules import Schedule, value_at
from lightning_polystep.step import Transported, adapt_reach, held_back, move, propose, transport
from lightning_polystep.subspaces import SUBSPACES
from lightning_polystep.transport import Transport, transport_of, usual_spread
from lightning_polystep.values import at_least, check

# After so many steps rows that change nothing are probed as wide as they ever are, and for some steps already.
_IDLE_STEPS = 8
# Of what costs usually spread, where they are estimates: such networks went back without it when they were trained on.
_MEMORY_OF_ESTIMATES = 0.9


class PolyStep(HostedOptimizer):
    r"""Train by forward passes only: probe polytopes around particles and move to the cheapest vertices' barycentre.

    For particle i with vertices :math:`V`, random rotation :math:`R` and basis :math:`B`,

    .. math::
        C_{iv} &= L(\theta + \rho\, B R v) \\
        W_{iv} &\propto \exp(-C_{iv} / (\sigma_i \varepsilon)) \\
        \Delta_i &= \sqrt d \sum_v W_{iv}\, B R v \\
        M &\leftarrow \mu M + (1 - \mu) \Delta, \qquad \theta \leftarrow (1 - \eta \lambda) \theta + \eta M

    with :math:`\rho` = ``probe_radius``, :math:`\varepsilon` = ``epsilon``, :math:`\mu` = ``momentum``,
    :math:`\eta` = ``lr``, :math:`\lambda` = ``weight_decay``, :math:`\sigma_i` the standard deviation of the row's
    costs and d the particle's dimension.
    In the default subspace both radii are in units of pre-activation (root mean square over the layer's inputs).

    ``step()`` moves; the costs come from the :class:`~lightning_polystep.PolyStepStrategy` under a Trainer, or from an
    :class:`~lightning_polystep.Engine` in plain PyTorch. All arguments but ``seed``, ``importance_sampling``,
    ``backtracking`` and ``reuse_costs`` can be set per parameter group.

    Args:
        params: Parameters or parameter groups, as for any torch optimizer.
        lr: Step radius (eta), at least 0; torch schedulers act on it.
        probe_radius: Radius (rho), above 0, at which candidates are probed.
        epsilon: Temperature, above 0, in units of a row's spread of costs: small lets the best vertex take all. Or one
            of ``lightning_polystep.schedules``, which makes it a function of the step.
        momentum: Memory (mu), in [0, 1), of the moving average of displacements.
        cost_memory: Share (gamma), in [0, 1), that the usual spread of a row's costs keeps of itself at each step. If
            candidates differ less than usual, because most samples of the batch are learnt, the row moves less. 0 lets
            each batch move it as far; None is 0.9 where costs are estimates, of which the plan tells, and 0 elsewhere.
            Blocks of a single row have none.
        weight_decay: Share (lambda), at least 0, of a parameter that a step at radius 1 takes away, as in AdamW; of the
            rows that the step probes.
        rank: Directions probed per row and step; None lets the plan choose by what the scoring tier costs.
        rotations: Independently rotated polytopes around each particle, at least 1: that many times the candidates.
        radius_ratio: Several probe radii at once: by what factor, above 0, the radius grows from one of ``rotations``
            polytopes to the next; their geometric mean is ``probe_radius``, and farther vertices move as much farther.
            1 is one radius for all. Binary weights that are flipped have none.
        anchor_every: Steps for which a basis is kept before it is drawn anew where the parameters are, at least 1;
            within them only the rotation of the polytopes is fresh (the paper's "absorb every k steps"). In our
            measurements (docs/paper.md) it gains half a point of one network and costs 1.5 of another.
        rotation_bias: How far, 0 to 1, the first axis of each polytope leans towards what the rows' last moves have in
            common. It has not paid in any measurement of ours (docs/paper.md): momentum goes there already.
        response_grid: Find the loss of each sample at about so many values of a unit, at least 3, and interpolate
            candidates between them: an approximation, whose error the plan tells. It serves units of a recognised stack
            with a continuous response (ReLU, no activation, or more than 16 levels), and whatever is scored from the
            tape where a candidate changes one number of each sample. 0 scores each candidate exactly; None is 3 on the
            tape, and 0 in a stack.
        subspace: Directions proposed: "inputs" (span of the layer's own inputs; weights of which the tape shows that
            only their signs matter are flipped instead, where costs may be estimated), "gaussian" (random, low-rank),
            "sparse" (random, few coordinates each), "adaptive" (random, and along past moves), "full" (the coordinates
            themselves), "flips" (binary weights: each flipped on its own); those that move more than a row: "layer"
            (random, the paper's), "factored" (random matrices of low rank), "joint" (all parameters of the group are
            one particle, as for policies).
        whitening: Exponent (alpha), in [0, 1], of the "inputs" subspace: 0 is Euclidean, 1 fully whitened.
        span_floor: Share, in [0, 1), of the second strongest direction's strength (an eigenvalue) at which a direction
            of the "inputs" subspace is too weak to be probed. Where few strong directions hide many that matter, as
            on Fashion-MNIST, less than the default; 0 leaves out nothing but rounding.
        polytope: Vertices probed around a particle of dimension d: "orthoplex" (2 d), "simplex" (d + 1) or "cube"
            (2 ** d).
        particle_dim: Dimension of a particle; None makes all directions of a row one particle.
        transport: How costs become weights: "softmax" (one-sided optimal transport), "sinkhorn" (each vertex gets its
            share of all weight too), "kl" (about its share), "sample" (each particle goes to one vertex, drawn); or one
            of ``lightning_polystep.transport`` with settings of its own.
        maximize: Climb instead of descend.
        importance_sampling: Score candidates of a recognised stack on a random part of the batch: a sample is always
            taken if its error (half the sum of ``|softmax - target|``, 0 to 1) is at least this, else with a chance
            that falls in proportion down to 3 %, and counts for its reciprocal. 0 scores all samples.
        reuse_costs: Steps for which costs are used before candidates are scored again, at least 1: between, each step
            transports and moves by the same costs (the paper's amortised probes). It has not paid in any measurement
            of ours (docs/paper.md), because candidates are cheap here; it is for candidates that are dear.
        backtracking: Halve a step while it raises the loss of its batch by a tenth, down to 1/16: for blocks whose
            costs are estimates, which no forward pass has seen (the plan says which). It takes one more forward pass of
            a step or, where steps were made whole 16 times in a row, of every fourth.
        seed: Seed of every draw; None takes torch.initial_seed(), which seed_everything sets.

    Raises:
        ValueError: When a value is out of its range or a name is unknown.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine, PolyStep
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = PolyStep(model.parameters(), lr=0.1, seed=0)
        >>> engine = Engine(model, optimizer, announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        PolyStep, arXiv 2605.01928, sections 3 and 4; the input-spanned basis: ``docs/design.md``.
    """

    kind: ClassVar[str] = "PolyStep"
    _copied: ClassVar[tuple[str, ...]] = (*HostedOptimizer._copied, "reuse_costs", "_reused")

    def __init__(  # noqa: PLR0913 - one argument for each constant, all shown by the command line
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        probe_radius: float = 0.3,
        epsilon: float | Schedule = 2.0,
        momentum: float = 0.8,
        cost_memory: float | None = None,
        weight_decay: float = 0.0,
        rank: int | None = None,
        rotations: int = 1,
        radius_ratio: float = 1.0,
        anchor_every: int = 1,
        rotation_bias: float = 0.0,
        response_grid: int | None = None,
        subspace: Literal[
            "inputs", "gaussian", "sparse", "adaptive", "full", "flips", "layer", "factored", "joint"
        ] = "inputs",
        whitening: float = 0.35,
        span_floor: float = 0.01,
        polytope: Literal["orthoplex", "simplex", "cube"] = "orthoplex",
        particle_dim: int | None = None,
        transport: Literal["softmax", "sinkhorn", "kl", "sample"] | Transport = "softmax",
        maximize: bool = False,
        importance_sampling: float = 0.0,
        reuse_costs: int = 1,
        backtracking: bool = True,
        seed: int | None = None,
    ) -> None:
        check(self.kind, {"reuse_costs": reuse_costs}, [at_least("reuse_costs", 1)])
        self.reuse_costs = reuse_costs
        self._reused = ReusedCosts()
        defaults = {
            "lr": lr,
            "probe_radius": probe_radius,
            "epsilon": epsilon,
            "momentum": momentum,
            "cost_memory": cost_memory,
            "weight_decay": weight_decay,
            "rank": rank,
            "rotations": rotations,
            "radius_ratio": radius_ratio,
            "anchor_every": anchor_every,
            "rotation_bias": rotation_bias,
            "response_grid": response_grid,
            "subspace": subspace,
            "whitening": whitening,
            "span_floor": span_floor,
            "polytope": polytope,
            "particle_dim": particle_dim,
            "transport": transport,
            "maximize": maximize,
        }
        super().__init__(params, defaults, seed=seed, importance_sampling=importance_sampling)
        self.backtracking = backtracking

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checking its values."""
        guards.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def blocks(self, module: nn.Module, held: Set[nn.Parameter] = frozenset()) -> list[Block]:
        """Return rows of particles: every unfrozen parameter in blocks of its own, but those that are held."""
        found = find_blocks(module, self.param_groups)
        free = [block for block in found if held.isdisjoint(block.parameters)]
        self._reused.follow(free)
        return free

    def with_signs(self, blocks: list[Block], acts_by_signs: Callable[[Block], bool]) -> list[Block]:
        """Return blocks whose weights are flipped one by one: where only signs matter, and estimates are allowed."""
        found: list[Block] = []
        for block in blocks:
            flips = block.subspace == "inputs" and not block.wants_exact and acts_by_signs(block)
            found += flipped_one_by_one(block) if flips else [block]
        self._reused.follow(found)
        return found

    def propose(
        self,
        block: Block,
        *,
        rank: int,
        rotations: int = 1,
        most_rows: int | None = None,
        among: Tensor | None = None,
    ) -> Proposal:
        """Return the vertices of polytopes around the block's particles."""
        return propose(
            block,
            self.statistics.get(block.name),
            self.reach(block),
            seed=self.seed,
            step=self.progress.step,
            rank=rank,
            rotations=rotations,
            most_rows=most_rows,
            among=among,
            moves=self._moves(block),
        )

    def _moves(self, block: Block) -> Tensor | None:
        """Return what the rows of a block have lately done, (rows, D), if its proposals are to follow that."""
        if not (block.group["rotation_bias"] > 0 or SUBSPACES[block.subspace].follows_moves):
            return None
        buffers = [self.state[parameter].get("momentum_buffer") for parameter in block.parameters]
        return block.join(
            [torch.zeros_like(p) if b is None else b for p, b in zip(block.parameters, buffers, strict=True)]
        )

    def update(self, pending: Pending) -> Figures:
        """Transport and move, block by block; between two times of scoring by the last costs."""
        is_fresh = self._scores_now
        if is_fresh and self.reuse_costs > 1:
            self._reused.keep(pending)
        pending = pending if is_fresh else self._reused.of(pending)
        results: list[Transported] = []
        squared_norm = torch.zeros((), dtype=torch.float64)
        for index, (proposal, costs) in enumerate(zip(pending.proposals, pending.costs, strict=True)):
            group = proposal.block.group
            sign = -1.0 if group["maximize"] else 1.0
            shaped = (sign * costs / pending.weight).reshape(len(proposal.rows), *proposal.directions.shape[:2])
            with self.binding.verb("transport"):
                usual, step, name = self._usual_spread(proposal), self.progress.step, proposal.block.name
                result = transport(shaped, group, seed=self.seed, step=step, name=name, usual=usual)
                if is_fresh:
                    self._adapt_reach(proposal, result.row_spread)
                    self._learn_spread(proposal, usual, result.row_spread)
            with self.binding.verb("move"):
                displacement = move(proposal, result.weights)
                if is_fresh:
                    self._adapt_strides(proposal, displacement)
                if proposal.block.constant and index < len(pending.incumbents):
                    incumbent = sign * pending.incumbents[index] / pending.weight
                    displacement = held_back(displacement, proposal, shaped, incumbent)
                squared_norm += self._move(proposal, displacement).cpu()
            results.append(result)
        self._warn_of_transports(pending.proposals, results)
        if is_fresh and results and self.binding.idle_steps < _IDLE_STEPS:
            self._warn_if_nothing_changes(results)
        in_turn = [self._move_in_turn(block) for block in pending.in_turn]
        squared_norm += sum(moved.squared_norm for moved in in_turn)
        candidates = sum(proposal.candidates for proposal in pending.proposals) if is_fresh else 0
        report: Figures = {
            "candidates": float(candidates + sum(moved.candidates for moved in in_turn)),
            "step_norm": squared_norm.sqrt(),
        }
        if results:
            report |= {
                "cost_spread": torch.stack([result.spread for result in results]).mean(),
                "effective_vertices": torch.stack([result.effective_vertices for result in results]).mean(),
                "marginal_error": torch.stack([result.marginal_error for result in results]).max(),
                "flat_rows": torch.stack([result.flat_rows for result in results]).mean(),
            }
        return report

    def moves_in_turn(self, block: Block) -> bool:
        """Tell whether a block's particles move one after the other; at once do those that go to a barycentre."""
        return block.parameters[0] in self.binding.movers and transport_of(block.group["transport"]).draws

    def scores(self, block: Block) -> bool:
        """Tell whether candidates of a block are scored before it moves."""
        return self._scores_now and super().scores(block)

    @property
    def round(self) -> int:
        """How many steps have scored candidates: all of them unless costs are reused."""
        return self.progress.step // self.reuse_costs

    @property
    def _scores_now(self) -> bool:
        return self.progress.step % self.reuse_costs == 0

    def _move_in_turn(self, block: Block) -> Moved:
        group, step = block.group, self.progress.step
        turn = Turn(value_at(group["epsilon"], step), min(group["lr"], 1.0), self.seed, step, group["maximize"])
        with self.binding.verb("move"):
            moved = self.binding.movers[block.parameters[0]].move_in_turn(turn)
        self.progress.candidates += moved.candidates
        return moved

    def _warn_if_nothing_changes(self, results: Sequence[Transported]) -> None:
        """Say so once the candidates of the first steps have all cost the same, also those of rows probed widest."""
        changes = any(bool(result.spread > 0) for result in results)
        self.binding.idle_steps = math.inf if changes else self.binding.idle_steps + 1
        if self.binding.idle_steps == _IDLE_STEPS:
            warnings.warn(guards.NOTHING_CHANGES.format(_IDLE_STEPS), stacklevel=5)

    def _warn_of_transports(self, proposals: Sequence[Proposal], results: Sequence[Transported]) -> None:
        """Say once which blocks' weights are not what their transport was asked for."""
        for message, unlike in [
            (guards.ONE_SIDED, [result.one_sided for result in results]),
            (guards.NOT_CONVERGED, [not result.converged for result in results]),
        ]:
            blocks = [proposal.block for proposal, true in zip(proposals, unlike, strict=True) if true]
            if blocks and message not in self.binding.warned:
                self.binding.warned.add(message)
                names = ", ".join(block.name for block in blocks[:3])
                others = f" and {len(blocks) - 3} more" if len(blocks) > 3 else ""
                chosen = transport_of(blocks[0].group["transport"])
                warnings.warn(message.format(chosen, names + others), stacklevel=5)

    def reach(self, block: Block) -> Tensor:
        """Return how many times wider than normal each row of a block is probed, shape (rows,)."""
        return self._of_rows(block, "reach") * self._of_rows(block, "stride")

    def _of_rows(self, block: Block, name: str, start: float = 1.0) -> Tensor:
        parameter = block.parameters[0]
        known: Tensor | None = self.state[parameter].get(name)
        return parameter.new_full((block.rows,), start) if known is None else known

    def _adapt_reach(self, proposal: Proposal, row_spread: Tensor) -> None:
        block, reach = proposal.block, self._of_rows(proposal.block, "reach")
        # Wider would be beyond what it can be: see `constants`.
        if block.constant or not SUBSPACES[block.subspace].adapts_reach:
            return
        adapted = adapt_reach(reach[proposal.rows], row_spread.to(reach))
        self.state[block.parameters[0]]["reach"] = reach.index_copy(0, proposal.rows, adapted)

    def _usual_spread(self, proposal: Proposal) -> Tensor | None:
        """Return what the costs of rows usually spread, shape (rows,); None for blocks without a memory of it."""
        if not _cost_memory(proposal.block):
            return None
        return self._of_rows(proposal.block, "spread", 0.0)[proposal.rows].double()

    def _learn_spread(self, proposal: Proposal, usual: Tensor | None, row_spread: Tensor) -> None:
        if usual is not None:
            block, known = proposal.block, self._of_rows(proposal.block, "spread", 0.0)
            after = usual_spread(usual, row_spread.to(usual), _cost_memory(block))
            self.state[block.parameters[0]]["spread"] = known.index_copy(0, proposal.rows, after.to(known))

    def _adapt_strides(self, proposal: Proposal, displacement: Tensor) -> None:
        """Let rows stride whose mean outputs go the same way at every step, because they are far from their aim."""
        block = proposal.block
        known = self.statistics.get(block.name)
        if (
            known is None
            or block.constant
            or block.competes
            or not (block.has_bias and SUBSPACES[block.subspace].adapts_reach)
        ):
            return
        shifts = displacement.detach() @ known.moment[:, -1].to(displacement)
        state, rows = self.state[block.parameters[0]], proposal.rows
        before = Strides(self._of_rows(block, "stride"), self._of_rows(block, "steady", 0.0))
        lr = float(block.group["lr"])
        # Of the group, so that checkpoints have it.
        peak = block.group["peak_lr"] = max(lr, block.group.get("peak_lr", 0.0))
        after = Strides(*(each[rows] for each in before)).after(shifts, lr / peak if peak > 0 else 0.0)
        state["stride"] = before.lengths.index_copy(0, rows, after.lengths)
        state["steady"] = before.steady.index_copy(0, rows, after.steady)

    def _move(self, proposal: Proposal, displacement: Tensor) -> Tensor:
        """Fold the displacement into the momentum of the probed rows and move them; return the squared length."""
        block, group = proposal.block, proposal.block.group
        squared = torch.zeros((), dtype=torch.float64, device=displacement.device)
        masks: Sequence[Tensor | None] = [None] * len(block.parameters)
        if len(proposal.rows) < block.rows:
            displacement = displacement.new_zeros(block.rows, block.dim).index_copy_(0, proposal.rows, displacement)
            probed = torch.zeros_like(displacement[:, :1], dtype=torch.bool).index_fill_(0, proposal.rows, True)
            masks = block.split(probed.expand(block.rows, block.dim))
        before = block.parameters[0].clone()
        for parameter, part, mask in zip(block.parameters, block.split(displacement), masks, strict=True):
            buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            momentum = torch.lerp(part, buffer, group["momentum"])
            pull = torch.sub(momentum, parameter, alpha=group["weight_decay"])
            if mask is not None:
                momentum, pull = torch.where(mask, momentum, buffer), torch.where(mask, pull, 0.0)
            buffer.copy_(momentum)
            update = group["lr"] * pull
            parameter.add_(update)
            squared += update.double().square().sum()
        SUBSPACES[block.subspace].settle(proposal, before)
        return squared

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings and dicts: loads with ``weights_only=True``."""
        state = super().state_dict()
        state["param_groups"] = [described(group) for group in state["param_groups"]]
        return state

    def own_state(self) -> dict[str, Any]:
        """Return what is known of the inputs of layers, and costs that are used again."""
        state: dict[str, Any] = {"statistics": {name: dict(vars(known)) for name, known in self.statistics.items()}}
        return state if self.reuse_costs == 1 else {**state, "reused": self._reused.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what is known of the inputs of layers, and costs that are used again."""
        self.statistics.clear()
        self.statistics.update({name: InputStatistics(**known) for name, known in state["statistics"].items()})
        self._reused = ReusedCosts(self._reused.blocks, loaded=state.get("reused"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: When the state belongs to another optimizer, or to another version of this one, or names a
                transport or a schedule that is not known.
        """
        # A group that this optimizer does not have is torch's to refuse.
        current = itertools.chain(self.param_groups, itertools.repeat(dict[str, Any]()))
        saved = [restored(*pair) for pair in zip(state_dict["param_groups"], current, strict=False)]
        super().load_state_dict({**state_dict, "param_groups": saved})


def _cost_memory(block: Block) -> float:
    """Return which share the usual spread of a row's costs keeps of itself; 0 for a block without a memory of it."""
    asked: float | None = block.group["cost_memory"]
    if block.rows == 1:
        return 0.0
    return asked if asked is not None else _MEMORY_OF_ESTIMATES * block.estimated
