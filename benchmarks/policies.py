"""Candidates that a policy takes to be solved: ``python -m benchmarks.policies [--runs 5]``.

Every method plays the same episodes: ``--episodes`` for each candidate, the same for all candidates of a step, new ones
at the next. After each step its current policy (the mean of CMA-ES) plays 100 held-out episodes; a run is solved once
their mean reaches the registered threshold, and goes on to ``--last`` candidates, so that the last return is that of a
policy trained on. All start from the same network, and move its parameters in the same units (1 / sqrt(inputs) of a
layer): ``--radius`` is the step radius and the probe radius of ours, the standard deviation of the rivals' noise, and
what their steps are a share of; 1 where a policy chooses and 2 where it gives a number, which has to reach the largest
one. One setting per method, for all policies, was chosen on seeds from 1000 on.

* ours: PolyStep, ``subspace="joint"``, 8 directions and their opposites, and the policy itself, which a step rolls out
  too and which counts like them.
* openai-es: 8 antithetic Gaussian pairs, ranks of returns, Adam.
* ars: 8 antithetic Gaussian pairs, the best 4 of them, over the spread of their returns (without ARS' normalisation of
  observations, which nobody gets).
* cma-es: pycma, a population of 16; left out where the package ``cma`` is not installed.
* guess: networks drawn anew, the first that solves its own four episodes and the held-out ones.

Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import finish, make_parser, median_and_spread, prepare, show
from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.environments import ENVIRONMENTS, Policy, Rollouts, environment_named, rollouts
from lightning_polystep.randomness import derive_seed, generator
from models import PolicyNet, PolicySearch
from models.policy_net import Units, Weights

# Units and weights by the name of the policy.
POLICIES: dict[str, tuple[Units, Weights]] = {
    "tanh": ("tanh", "float"),
    "sign": ("sign", "float"),
    "int8": ("int8", "int8"),
    "binary": ("sign", "binary"),
}
# Where none is registered: Pendulum's best controllers reach about -150.
THRESHOLDS = {"Pendulum-v1": -200.0}
HIDDEN, HELD_OUT = 16, 100
OURS = {"epsilon": 0.5, "momentum": 0.5}
# Step of OpenAI-ES and of ARS as a share of the radius at which candidates lie.
ES_STEP, ARS_STEP = 1.0, 0.5
# How far candidates lie where a policy chooses an action, and where it gives a number.
CHOICE_RADIUS, NUMBER_RADIUS = 1.0, 2.0


class Counted(PolicySearch):
    """Tells what PolyStep rolls out, through a queue: a count of its own would be put back with all that probes change.

    What the plan tries its tiers on counts too, and the policy itself, which each step observes once.
    """

    def __init__(self, environment: str, network: nn.Module) -> None:
        super().__init__(environment, network)
        self.told: SimpleQueue[tuple[int, int]] = SimpleQueue()

    def candidates_rolled_out(self, parameters: Mapping[str, Tensor]) -> Rollouts:
        """Roll out and tell of it."""
        return self._tell(super().candidates_rolled_out(parameters))

    def _rolled_out(self, seeds: Tensor) -> Rollouts:
        return self._tell(super()._rolled_out(seeds))

    def _tell(self, result: Rollouts) -> Rollouts:
        self.told.put((result.returns.shape[0], int(result.steps.sum())))
        return result

    def count(self, problem: Problem) -> None:
        """Count what has been told."""
        while not self.told.empty():
            candidates, steps = self.told.get()
            problem.candidates += candidates
            problem.steps += steps


@dataclass
class Problem:
    """A policy to be found, and a count of what finding it has taken.

    Args:
        search: The policy in its environment, at its first weights.
        seed: Of the run: its episodes and all that a method draws.
        episodes: Of each candidate.
        pairs: Candidates and their opposites of a step, or directions.
        radius: How far candidates lie from the current policy.
        weight_decay: Of ours.
        candidates: Rolled out so far.
        steps: Of the environment so far.
    """

    search: Counted
    seed: int
    episodes: int
    pairs: int
    radius: float = 1.0
    weight_decay: float = 0.0
    candidates: int = 0
    steps: int = 0
    first: Tensor = field(init=False)
    units: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # The very units and order in which ours moves the parameters.
        group = PolyStep(self.search.parameters(), subspace="joint").param_groups
        (self.block,) = find_blocks(self.search, group)
        self.first = self.block.join([parameter.detach() for parameter in self.block.parameters])[0].double()
        sizes = torch.tensor([parameter.numel() for parameter in self.block.parameters])
        self.units = torch.tensor(self.block.scales, dtype=torch.float64).repeat_interleave(sizes)

    def seeds(self, step: int) -> Tensor:
        """Return the seeds of a step's episodes."""
        return torch.tensor([derive_seed(self.seed, step, index, "episodes") for index in range(self.episodes)])

    def policy(self, moves: Tensor) -> Policy:
        """Return policies by how far they are from the first one, (K, D), in units of the layers."""
        rows = (self.first + self.units * moves).float()[:, None]
        named = zip(self.block.parameter_names, self.block.split(rows), strict=True)
        return Policy(self.search.network, {name.removeprefix("network."): values for name, values in named})

    def returns(self, moves: Tensor, step: int) -> Tensor:
        """Roll candidates out on a step's episodes and count them; return their mean returns, (K,)."""
        result = rollouts(self.search.environment, self.policy(moves), self.seeds(step))
        self.candidates += len(moves)
        self.steps += int(result.steps.sum())
        return result.returns.mean(1)

    def held_out(self, policy: Policy) -> float:
        """Return the mean return of a policy on episodes that no method trains on."""
        seeds = torch.tensor([derive_seed(self.seed, 0, index, "held out") for index in range(HELD_OUT)])
        return float(rollouts(self.search.environment, policy, seeds).returns.mean())


# A method makes one step after the other, and gives its current policy after each.
Method = Callable[[Problem], Iterator[Policy]]


def ours(problem: Problem) -> Iterator[Policy]:
    """Train by PolyStep, one particle for the whole policy."""
    search = problem.search
    optimizer = PolyStep(
        search.parameters(),
        problem.radius,
        probe_radius=problem.radius,
        subspace="joint",
        rank=problem.pairs,
        weight_decay=problem.weight_decay,
        seed=problem.seed,
        **OURS,  # type: ignore[arg-type]
    )
    engine = Engine(search, optimizer, announce=None)
    for step in range(10**9):
        seeds = problem.seeds(step)
        engine.step(lambda now=seeds: search.loss(now))  # type: ignore[misc]
        search.count(problem)
        yield Policy(search.network)


def openai_es(problem: Problem) -> Iterator[Policy]:
    """Climb by ranks of antithetic Gaussian pairs and Adam (Salimans et al. 2017)."""
    mean = torch.zeros_like(problem.first)
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for step in range(10**9):
        noise = _noise(problem, step)
        returns = problem.returns(mean + problem.radius * torch.cat([noise, -noise]), step)
        ranks = returns.argsort().argsort().double() / (len(returns) - 1) - 0.5
        ranks = torch.where((returns == returns[0]).all(), 0.0, ranks)  # all alike say nothing
        gradient = (ranks[: problem.pairs] - ranks[problem.pairs :]) @ noise / problem.pairs
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        mean = mean + ES_STEP * problem.radius * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        yield problem.policy(mean[None])


def ars(problem: Problem) -> Iterator[Policy]:
    """Climb by the best half of antithetic Gaussian pairs, over the spread of their returns (Mania et al. 2018)."""
    mean, best = torch.zeros_like(problem.first), max(1, problem.pairs // 2)
    for step in range(10**9):
        noise = _noise(problem, step)
        returns = problem.returns(mean + problem.radius * torch.cat([noise, -noise]), step).reshape(2, -1)
        kept = returns.amax(0).topk(best).indices
        spread = returns[:, kept].std().clamp(min=1e-8)
        share = ARS_STEP * problem.radius / (best * spread)
        mean = mean + share * (returns[0, kept] - returns[1, kept]) @ noise[kept]
        yield problem.policy(mean[None])


def cma_es(problem: Problem) -> Iterator[Policy]:
    """Climb by CMA-ES as the package ``cma`` has it."""
    import cma  # noqa: PLC0415 - an optional rival

    options = {"popsize": 2 * problem.pairs, "seed": problem.seed + 1, "verbose": -9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = cma.CMAEvolutionStrategy(np.zeros(len(problem.first)), problem.radius, options)
        for step in range(10**9):
            asked = np.stack(strategy.ask())
            strategy.tell(list(asked), (-problem.returns(torch.from_numpy(asked), step)).tolist())
            yield problem.policy(torch.from_numpy(strategy.mean)[None])


def guess(problem: Problem) -> Iterator[Policy]:
    """Draw networks; the best of all so far on its own episodes is the current one."""
    best, policy = -math.inf, problem.policy(torch.zeros(1, len(problem.first)))
    for step in range(10**9):
        moves = 3 * torch.randn(2 * problem.pairs, len(problem.first), generator=_draw(problem, step)).double()
        returns = problem.returns(moves, step)
        if float(returns.max()) > best:
            best, policy = float(returns.max()), problem.policy(moves[returns.argmax()][None])
        yield policy


def _draw(problem: Problem, step: int) -> torch.Generator:
    return generator(problem.seed, step, "noise of a rival")


def _noise(problem: Problem, step: int) -> Tensor:
    return torch.randn(problem.pairs, len(problem.first), generator=_draw(problem, step), dtype=torch.float64)


METHODS: dict[str, Method] = {"ours": ours, "openai-es": openai_es, "ars": ars, "cma-es": cma_es, "guess": guess}


def run(method: Method, environment: str, policy: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one policy; return what it took and what it reached.

    Args:
        method: How.
        environment: Where.
        policy: Its kind, a name of ``POLICIES``.
        seed: Of the first network, the episodes and the method.
        options: ``episodes``, ``pairs``, ``radius``, ``weight_decay``, ``cap``, ``last`` and ``every``.

    Raises:
        ValueError: If nothing tells when the environment is solved.
    """
    torch.manual_seed(seed)
    world = environment_named(environment)
    search = Counted(environment, PolicyNet((world.observations, HIDDEN, world.outputs), *POLICIES[policy]))
    radius = options.radius or (CHOICE_RADIUS if world.actions else NUMBER_RADIUS)
    problem = Problem(search, seed, options.episodes, options.pairs, radius, options.weight_decay)
    threshold = THRESHOLDS.get(environment, world.threshold)
    if threshold is None:
        raise ValueError(f"{environment} has no registered threshold, so nothing tells when it is solved.")
    solved: tuple[int, int] | None = None
    best, value, started = -math.inf, -math.inf, time.process_time()
    for number, current in enumerate(method(problem), 1):
        if number % options.every and problem.candidates < options.cap:
            continue
        value = problem.held_out(current)
        best = max(best, value)
        if solved is None and value >= threshold:
            solved = problem.candidates, problem.steps
        if problem.candidates >= (options.cap if solved is None else max(options.last, solved[0])):
            break
    return {
        "candidates": None if solved is None else solved[0],
        "environment_steps": None if solved is None else solved[1],
        "best": best,
        "last": value,
        "seconds": time.process_time() - started,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    methods = {name: METHODS[name] for name in options.methods}
    notes = []
    if "cma-es" in methods and not _has_cma():
        del methods["cma-es"]
        notes = ["cma-es: left out, because the package cma is not installed (pip install cma)"]
    seeds = [options.seed + index for index in range(options.runs)]
    results: dict[str, Any] = {}
    for environment in options.environments:
        for policy in options.policies:
            runs = {
                name: [run(method, environment, policy, seed, copy.copy(options)) for seed in seeds]
                for name, method in methods.items()
            }
            results[f"{environment} {policy}"] = {name: summarise(each) | {"runs": each} for name, each in runs.items()}
            report(f"{environment}, {policy}", results[f"{environment} {policy}"], notes)
    finish("policies", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--environments", nargs="+", default=list(ENVIRONMENTS)[:3], help="ours, compiled, or gymnasium's (slower)"
    )
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=int, default=5, help="seeds: --seed and those that follow")
    parser.add_argument("--episodes", type=int, default=4, help="of each candidate")
    parser.add_argument("--pairs", type=int, default=8, help="candidates of a step, half of them; directions of ours")
    parser.add_argument("--radius", type=float, help="how far candidates lie, in units of the layers (default: 1 or 2)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of ours")
    parser.add_argument("--cap", type=int, default=4000, help="candidates after which a run counts as not solved")
    parser.add_argument("--every", type=int, default=1, help="steps from one held-out check to the next")
    parser.add_argument("--last", type=int, default=0, help="candidates to which solved runs go on")
    options = parser.parse_args(arguments)
    if options.quick:
        options.environments, options.policies = ["CartPole-v1"], ["tanh"]
        options.runs, options.cap, options.last = 2, 160, 64
    return options


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many runs were solved, and median and range of what it took; not solved counts as never.

    Example:
        >>> each = {"environment_steps": 5, "best": 1.0, "last": 0.0}
        >>> summarise([{"candidates": candidates, **each} for candidates in (16, 48, None)])["candidates"]
        {'median': 48, 'low': 16, 'high': None}
    """
    taken = {}
    for name in ("candidates", "environment_steps"):
        ordered = sorted(math.inf if each[name] is None else each[name] for each in runs)
        found = {"median": median(ordered), "low": ordered[0], "high": ordered[-1]}
        taken[name] = {key: None if value == math.inf else value for key, value in found.items()}
    reached = {name: median_and_spread([each[name] for each in runs]) for name in ("best", "last")}
    return {"solved": sum(each["candidates"] is not None for each in runs), "of": len(runs)} | taken | reached


def report(title: str, summaries: dict[str, Any], notes: Sequence[str]) -> None:
    """Print a table of one policy in one environment."""
    rows = []
    for name, each in summaries.items():
        candidates, steps = (
            {key: "never" if value is None else f"{value:,.0f}" for key, value in each[taken].items()}
            for taken in ("candidates", "environment_steps")
        )
        rows.append(
            [
                name,
                f"{each['solved']} of {each['of']}",
                f"{candidates['median']} [{candidates['low']}-{candidates['high']}]",
                steps["median"],
                f"{each['best']['median']:.1f}",
                f"{each['last']['median']:.1f} [{each['last']['low']:.1f}]",
            ]
        )
    columns = ["method", "solved", "candidates [range]", "environment steps", "best return", "last return [worst]"]
    show(title, columns, rows, notes)


def _has_cma() -> bool:
    try:
        import cma  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
