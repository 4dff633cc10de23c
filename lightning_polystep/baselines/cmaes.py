"""CMAES: evolution strategy with covariance matrix adaptation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_polystep.baselines.joint import JointOptimizer
from lightning_polystep.particles import Block
from lightning_polystep.values import Rule, at_least, check, flag, one_of

# A full covariance has the square of so many numbers, and is decomposed at every step.
_MOST_FULL = 2_000
_TOO_MANY = (
    "CMAES with a full covariance adapts {0:,} x {0:,} numbers, which is too many: set covariance='diagonal', or train "
    "no more than {1:,} parameters by freezing others."
)


@dataclass(frozen=True)
class Constants:
    """Weights and rates of CMA-ES, functions of the number of parameters and of candidates.

    Args:
        weights: w, of the best candidates, shape (mu,), float64.
        mass: mu_eff, the effective number of them.
        c_sigma: Rate of the path of the step size.
        d_sigma: Damping of the step size.
        c_c: Rate of the path of the covariance.
        c_1: Rate of the covariance towards its path.
        c_mu: Rate of the covariance towards the best candidates.
        expected: Expected length of a standard normal vector.
    """

    weights: Tensor
    mass: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    expected: float

    @classmethod
    def of(cls, numbers: int, candidates: int, diagonal: bool) -> Constants:
        """Return the published values.

        Args:
            numbers: Parameters D.
            candidates: Of a step, at least 2.
            diagonal: Whether the covariance is, and may be learnt (D + 2) / 3 times as fast.

        Example:
            >>> constants = Constants.of(10, 10, diagonal=False)
            >>> round(constants.mass, 2), round(float(constants.weights.sum()), 6)
            (3.17, 1.0)
        """
        best, n = candidates // 2, numbers
        weights = math.log((candidates + 1) / 2) - torch.arange(1, best + 1, dtype=torch.float64).log()
        weights = weights / weights.sum()
        mass = 1.0 / float(weights.square().sum())
        c_sigma = (mass + 2) / (n + mass + 5)
        faster = (n + 2) / 3 if diagonal else 1.0
        c_1 = min(1.0, faster * 2 / ((n + 1.3) ** 2 + mass))
        c_mu = min(1 - c_1, faster * 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
        return cls(
            weights=weights,
            mass=mass,
            c_sigma=c_sigma,
            d_sigma=1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + c_sigma,
            c_c=(4 + mass / n) / (n + 4 + 2 * mass / n),
            c_1=c_1,
            c_mu=c_mu,
            expected=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
        )


class CMAES(JointOptimizer):
    r"""Draw candidates from a normal distribution whose mean, step size and covariance follow the best of them.

    With :math:`y_i = C^{1/2} z_i`, :math:`z_i \sim \mathcal N(0, I)`, and i counting from the candidate of the lowest
    loss,

    .. math::
        y_w &= \sum_{i=1}^{\mu} w_i y_i, \qquad \theta \leftarrow \theta + \eta\, \rho\, \sigma\, y_w \\
        p_\sigma &\leftarrow (1 - c_\sigma) p_\sigma + \sqrt{c_\sigma (2 - c_\sigma) \mu_w}\; C^{-1/2} y_w \\
        p_c &\leftarrow (1 - c_c) p_c + h \sqrt{c_c (2 - c_c) \mu_w}\; y_w \\
        C &\leftarrow (1 - c_1 - c_\mu) C + c_1 (p_c p_c^\top + (1 - h) c_c (2 - c_c) C)
            + c_\mu \sum_i w_i y_i y_i^\top \\
        \sigma &\leftarrow \sigma \exp\Bigl(\frac{c_\sigma}{d_\sigma}
            \Bigl(\frac{\lVert p_\sigma \rVert}{E \lVert \mathcal N(0, I) \rVert} - 1\Bigr)\Bigr)

    Candidates are :math:`\theta + \rho \sigma y_i` with :math:`\rho` = ``probe_radius``, so that :math:`\sigma` starts
    at 1; :math:`\eta` = ``lr``; h is 0 while :math:`p_\sigma` is unusually long, else 1; the other constants are the
    published ones (:class:`Constants`). Weights are positive: the variant without active updates.

    Args:
        params: Parameters or parameter groups.
        lr: eta, the learning rate of the mean, at least 0; 1 as published.
        probe_radius: rho, above 0, in units of the parameters: the first standard deviation.
        candidates: Of a step, at least 4; None is 4 + 3 log D, rounded down, as published.
        covariance: "full" for up to 2,000 parameters, or "diagonal" (sep-CMA-ES), for any number.
        maximize: Climb instead of descend.
        seed: Seed of every draw; None takes torch.initial_seed().

    Raises:
        ValueError: When a value is out of its range, or there are too many parameters for a full covariance.

    Example:
        >>> import torch
        >>> from lightning_polystep import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(model, CMAES(model.parameters(), seed=0), announce=None)
        >>> x, y = torch.randn(16, 2), torch.ones(16, 1)
        >>> losses = [float(engine.step(lambda: (model(x) - y).square().mean())) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True

    References:
        Hansen 2016, The CMA evolution strategy: a tutorial, arXiv 1604.00772; Ros and Hansen 2008, A simple
        modification in CMA-ES achieving linear time and space complexity (diagonal).
    """

    kind: ClassVar[str] = "CMAES"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("lr", "number", "the rate must be at least 0", lambda value: value >= 0),
        Rule("probe_radius", "number", "candidates need a radius above 0", lambda value: value > 0),
        flag("maximize"),
    )
    _copied: ClassVar[tuple[str, ...]] = (*JointOptimizer._copied, "candidates", "covariance", "search")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        probe_radius: float = 0.1,
        candidates: int | None = None,
        covariance: Literal["full", "diagonal"] = "full",
        maximize: bool = False,
        seed: int | None = None,
    ) -> None:
        rules = [at_least("candidates", 4, optional=True), one_of("covariance", ("full", "diagonal"))]
        check("CMAES", {"candidates": candidates, "covariance": covariance}, rules)
        self.candidates, self.covariance = candidates, covariance
        # p_sigma, p_c, C and sigma, on the CPU in float64, once the number of parameters is known.
        self.search: dict[str, Tensor] = {}
        super().__init__(params, {"lr": lr, "probe_radius": probe_radius, "maximize": maximize}, seed=seed)

    def population(self, numbers: int) -> int:
        """Return how many candidates a step has: as many as asked for, or as published."""
        return 4 + int(3 * math.log(numbers)) if self.candidates is None else self.candidates

    def displacements(self, block: Block, draw: torch.Generator) -> Tensor:
        """Return rho sigma y of all candidates, shape (candidates, D)."""
        self._begin(block.dim)
        z = torch.randn(self.population(block.dim), block.dim, generator=draw, dtype=torch.float64)
        if self.covariance == "diagonal":
            y = z * self.search["covariance"].sqrt()
        else:
            axes, lengths = self._decomposed()
            # The symmetric root: eigenvectors of equal eigenvalues are free, and rounding would choose them.
            y = ((z @ axes) * lengths) @ axes.T
        return self.spread_out(block, "probe_radius") * self.search["sigma"] * y

    def update_from(self, block: Block, displacements: Tensor, losses: Tensor) -> Tensor:
        """Return the move of the mean, shape (D,); nothing moves, or is learnt, from too few finite losses."""
        search, diagonal = self.search, self.covariance == "diagonal"
        constants = Constants.of(block.dim, len(losses), diagonal)
        best = losses.cpu().argsort(stable=True)[: len(constants.weights)]
        if not bool(losses.cpu()[best].isfinite().all()):
            return displacements.new_zeros(block.dim)
        unit = self.spread_out(block, "probe_radius") * search["sigma"]
        chosen = displacements.cpu().double()[best] / unit
        mean = constants.weights @ chosen
        generation = self.progress.step + 1
        path, slow = constants.c_sigma, constants.c_c
        pushed = math.sqrt(path * (2 - path) * constants.mass) * self._whitened(mean)
        search["p_sigma"] = (1 - path) * search["p_sigma"] + pushed
        length = float(search["p_sigma"].norm())
        usual = (1.4 + 2 / (block.dim + 1)) * constants.expected
        steady = float(length / math.sqrt(1 - (1 - path) ** (2 * generation)) < usual)
        search["p_c"] = (1 - slow) * search["p_c"] + steady * math.sqrt(slow * (2 - slow) * constants.mass) * mean
        c_1, c_mu, old = constants.c_1, constants.c_mu, search["covariance"]
        ranked, one = _outer(chosen, constants.weights, diagonal), _outer(search["p_c"][None], torch.ones(1), diagonal)
        kept = 1 - c_1 - c_mu + c_1 * (1 - steady) * slow * (2 - slow)
        search["covariance"] = kept * old + c_1 * one + c_mu * ranked
        move = self.spread_out(block, "lr") * unit * mean
        search["sigma"] = search["sigma"] * math.exp(path / constants.d_sigma * (length / constants.expected - 1))
        return move.to(displacements)

    def own_state(self) -> dict[str, Any]:
        """Return paths, covariance and step size."""
        return {"search": dict(self.search)}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore paths, covariance and step size."""
        self.search = {name: value.cpu().double() for name, value in state["search"].items()}

    def _begin(self, numbers: int) -> None:
        """Start with the unit covariance; anew where parameters have been frozen or unfrozen."""
        if self.covariance == "full" and numbers > _MOST_FULL:
            raise ValueError(_TOO_MANY.format(numbers, _MOST_FULL))
        if self.search and len(self.search["p_c"]) == numbers:
            return
        ones = torch.ones(numbers, dtype=torch.float64)
        self.search = {
            "p_sigma": torch.zeros_like(ones),
            "p_c": torch.zeros_like(ones),
            "covariance": ones if self.covariance == "diagonal" else ones.diag(),
            "sigma": torch.ones((), dtype=torch.float64),
        }

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvectors of C, and the roots of its eigenvalues."""
        squares, axes = torch.linalg.eigh(self.search["covariance"])
        return axes, squares.clamp(min=0.0).sqrt()

    def _whitened(self, mean: Tensor) -> Tensor:
        """Return C^(-1/2) y."""
        tiny = torch.finfo(mean.dtype).tiny
        if self.covariance == "diagonal":
            return mean / self.search["covariance"].sqrt().clamp(min=tiny)
        axes, lengths = self._decomposed()
        return axes @ ((axes.T @ mean) / lengths.clamp(min=tiny))


def _outer(vectors: Tensor, weights: Tensor, diagonal: bool) -> Tensor:
    """Return the weighted sum of outer products, or its diagonal."""
    weighted = weights.to(vectors)[:, None] * vectors
    return (weighted * vectors).sum(0) if diagonal else weighted.T @ vectors
