"""MAX-SAT as an objective: one particle per variable, whose two vertices are its two values."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.in_turn import Moved, Turn
from lightning_polystep.kernels.clause_sweep import Draws
from lightning_polystep.maxsat.formula import WeightedCNF
from lightning_polystep.maxsat.search import Search
from lightning_polystep.randomness import derive_seed, generator

Acceptance = Literal["metropolis", "heat_bath"]


class UnsatisfiedWeight(nn.Module):
    r"""The weight of the clauses that an assignment leaves unsatisfied; variable i is true where :math:`x_i > 0`.

    .. math:: L(x) = \sum_c w_c\, [\text{clause } c \text{ has no true literal}], \qquad
              L(x^{(i)}) - L(x) = \Delta_i = \mathrm{break}_i - \mathrm{make}_i

    for the assignment with variable i flipped. The :math:`\Delta` of all variables are kept, so that the 2 n candidates
    of a step are looked up (``evaluate_rows``). What then moves is the transport's to say:

    * ``transport="softmax"``: the barycentre, the paper's move. All x move at once.
    * ``transport="sample"``: a vertex. Variables move one after the other, ``sweeps`` times around in a step, each by
      the :math:`\Delta` that those before it have left (``move_in_turn``), at the temperature
      :math:`T = \varepsilon\, \sigma_0`, with :math:`\sigma_0` the standard deviation of all :math:`\Delta` at first
      With a falling epsilon and ``acceptance="metropolis"`` this is simulated annealing.

    A hard clause has the weight ``penalty``; what counts as the best assignment is the one with the fewest hard clauses
    violated, and of those the one of least soft weight.

    Args:
        formula: The formula.
        seed: Of the first assignment, which is random.
        sweeps: Sweeps of a step where variables move in turn, at least 1.
        acceptance: "heat_bath" draws from the transport plan, P(flip) = 1 / (1 + exp(Delta / T)); "metropolis" takes
            min(1, W_flip / W_stay), whose stationary law is the same and which rests less.
        penalty: Weight of a hard clause; by default one more than the soft weight that any one variable touches.
        coloured: Visit variables colour by colour of a colouring of the clauses' graph, as the kernel in plain torch
            has to; else by their numbers. Exact either way.

    Attributes:
        best: The best assignment so far, shape (n,), bool; a buffer, so checkpoints keep it.

    Raises:
        ValueError: When ``sweeps`` is below 1, or ``acceptance`` is unknown.

    Example:
        >>> from lightning_polystep import Engine, PolyStep
        >>> from lightning_polystep.maxsat import UnsatisfiedWeight, random_ksat
        >>> from lightning_polystep.schedules import Exponential
        >>> formula = random_ksat(200, 4.27, seed=1)
        >>> objective = UnsatisfiedWeight(formula)
        >>> annealed = Exponential(0.25, 0.04, steps=40)
        >>> optimizer = PolyStep(objective.parameters(), lr=1.0, transport="sample", epsilon=annealed, seed=0)
        >>> engine = Engine(objective, optimizer, announce=None)
        >>> _ = [engine.step(objective) for _ in range(40)]
        >>> formula.satisfied_share(objective.best.numpy()) > 0.99
        True

    References:
        PolyStep, arXiv 2605.01928 (barycentre); Kirkpatrick, Gelatt and Vecchi 1983 (annealing).
    """

    own_subspaces: ClassVar[dict[str, str]] = {"values": "signs"}
    best: Tensor
    best_rank: Tensor
    spread: Tensor

    def __init__(
        self,
        formula: WeightedCNF,
        *,
        seed: int = 0,
        sweeps: int = 10,
        acceptance: Acceptance = "metropolis",
        penalty: int | None = None,
        coloured: bool = False,
    ) -> None:
        super().__init__()
        if sweeps < 1:
            raise ValueError(f"sweeps must be at least 1, got {sweeps}.")
        if acceptance not in {"metropolis", "heat_bath"}:
            raise ValueError(f"acceptance must be 'metropolis' or 'heat_bath', got {acceptance!r}.")
        self.sweeps = sweeps
        self.acceptance = acceptance
        self.values = nn.Parameter(torch.empty(0))
        self._options = (seed, penalty, coloured)
        self.take(formula)

    def take(self, formula: WeightedCNF) -> None:
        """Begin anew with another formula, in the same parameter, so that an optimizer made before goes on to hold it.

        Args:
            formula: The formula.
        """
        seed, penalty, coloured = self._options
        self.formula = formula
        self.search = Search(formula, penalty, coloured=coloured)
        first = torch.randint(0, 2, (formula.variables,), generator=generator(seed, 0, "first assignment"))
        self.values.data = (2.0 * first - 1.0).to(self.values)
        self.register_buffer("best", first.bool())
        # Hard clauses violated, soft weight; and sigma_0, which is 0 until the first step.
        self.register_buffer("best_rank", torch.tensor([torch.iinfo(torch.int64).max] * 2))
        self.register_buffer("spread", torch.zeros((), dtype=torch.float64))

    def assignment(self) -> NDArray[np.bool_]:
        """Return the assignment that the values stand for, shape (n,), bool."""
        true: NDArray[np.bool_] = (self.values.detach() > 0).cpu().numpy()
        return true

    def forward(self) -> Tensor:
        """Return the loss L(x), a float64 scalar, and remember the assignment if it is the best."""
        search = self._search()
        self._remember()
        return torch.tensor(float(search.penalised), dtype=torch.float64, device=self.values.device)

    def evaluate_rows(self, name: str, rows: Tensor, values: Tensor) -> Tensor:
        """Return the loss of each candidate, of which each gives one variable a value, shape (K,), float64.

        Args:
            name: "values".
            rows: Which variable, shape (K,).
            values: What it gets, shape (K, 1).
        """
        del name
        search = self._search()
        costs = torch.from_numpy(search.costs)[rows.cpu()].double().to(values.device)
        flipped = (values[:, 0] > 0) != (self.values.detach()[rows] > 0)
        return search.penalised + torch.where(flipped, costs, 0.0)

    @torch.no_grad()
    def move_in_turn(self, turn: Turn) -> Moved:
        """Sweep over all variables, as often as a step does, and set the values to where they end.

        Raises:
            ValueError: When the optimizer is to maximise: a formula is satisfied, not violated.
        """
        if turn.maximize:
            raise ValueError("UnsatisfiedWeight is minimised: leave out maximize=True.")
        search = self._search()
        if not float(self.spread):
            self.spread.fill_(search.spread())
        for sweep in range(turn.step * self.sweeps, (turn.step + 1) * self.sweeps):
            search.sweep(
                Draws(
                    temperature=turn.epsilon * float(self.spread),
                    metropolis=self.acceptance == "metropolis",
                    share=turn.share,
                    seed=derive_seed(turn.seed, 0, 0, "clause sweeps"),
                    sweeps=range(sweep, sweep + 1),
                )
            )
            self._remember()
        before = self.values.detach().clone()
        self.values.copy_(torch.from_numpy(search.values).float() * 2 - 1)
        return Moved(2 * self.sweeps * len(before), float((self.values - before).double().square().sum()))

    @property
    def best_cost(self) -> int:
        """Soft weight that the best assignment leaves unsatisfied."""
        return int(self.best_rank[1])

    @property
    def best_violated(self) -> int:
        """Hard clauses that the best assignment violates."""
        return int(self.best_rank[0])

    def _search(self) -> Search:
        """Return the search where the values are: it moves along unless somebody else has written them."""
        values = self.assignment()
        if not self.search.is_at(values):
            self.search.go_to(values)
        return self.search

    def _remember(self) -> None:
        rank = (self.search.violated, self.search.cost)
        if rank < tuple(self.best_rank.tolist()):
            self.best.copy_(torch.from_numpy(self.search.values))
            self.best_rank.copy_(torch.tensor(rank))
