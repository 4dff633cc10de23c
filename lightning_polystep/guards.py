"""Every refusal, with its message: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lightning_polystep.polytopes import POLYTOPES
from lightning_polystep.schedules import Schedule, lowest
from lightning_polystep.subspaces import SUBSPACES
from lightning_polystep.transport import TRANSPORTS, Transport
from lightning_polystep.values import ArgumentRangeError, ArgumentTypeError, Rule, at_least, check, flag, one_of

DETACHED_OPTIMIZER = (
    "{}.step() has no candidates to weigh, because nothing scores them: train with "
    'Trainer(strategy="polystep"), or in plain PyTorch call Engine(model, optimizer).step(closure).'
)

NO_IMPORTANCE_SAMPLING = (
    "importance_sampling has no effect, because {}: all samples are scored. It is for modules whose `network` and "
    "`criterion`, a CrossEntropyLoss, are scored as a stack; set it to 0 for others."
)

NO_RESPONSE_GRID = (
    "response_grid has no effect: no unit with a continuous response (ReLU, no activation, or more than 16 levels) is "
    "scored as part of a stack, so every candidate is scored exactly; set it to 0."
)

LOST_WINDOW = (
    "The checkpoint was saved between the micro-batches of a step, and {}: "
    "those micro-batches are left out of the step, so the run differs from the uninterrupted one."
)
ONE_PROCESS = "it was not saved by the Trainer, which asks all processes for their part of what they cost"

NON_FINITE_LOSS = (
    "The loss of a batch is not finite, so the batch moves nothing and is counted in polystep/skipped: look for bad "
    "samples, or for an overflow in the network. Further such batches are counted without a warning."
)

DIFFERENT_BATCHES = (
    "At step {step} rank(s) {ranks} saw another batch than rank {leader}, with which they share the candidates: random "
    "augmentation in loader workers differs by rank under seed_everything(workers=True), so give the DataLoader a "
    "worker_init_fn that seeds by worker alone, or augment in on_after_batch_transfer by the batch's number; a sampler "
    "of your own must draw the same indices on these ranks; or set data_parallel_size to the number of processes."
)

DIFFERENT_LOSSES = (
    "At step {step} rank(s) {ranks} got another loss than rank {leader} for the same batch: training_step must not "
    "depend on the rank, on the clock, or on a random generator of its own."
)

DRIFTED_REPLICAS = (
    "At step {step} the parameters of rank(s) {ranks} differ from those of rank {leader}: change them on all ranks "
    "alike, never under `if self.global_rank == 0`, and start again from a checkpoint."
)

NOTHING_CHANGES = (
    "No candidate of the first {} steps has changed the loss, so nothing is trained: it may not depend on what is "
    "trained (another module computes it, or it is rounded or clamped on the way), the network may be silent or "
    "saturated (lightning_polystep.initialise gives it first weights), or the loss may be too small (of numbers below "
    "1e-10 little is left, so multiply it)."
)
ONE_SIDED = (
    "transport={0!r} weighs {1} by a softmax, because a step probes fewer than {0.least_rows} of their rows, and what "
    "it asks of the vertices would leave nothing to choose: give their parameters transport='softmax' in a group of "
    "their own, or probe more rows (a larger max_candidates)."
)

NOT_CONVERGED = (
    "transport={!r} did not reach its tolerance for {}, in as many iterations as it has: particles' weights sum to 1, "
    "but vertices' shares are off by what polystep/marginal_error says. Raise epsilon, iterations or tolerance."
)

FAILED_ELSEWHERE = "the faster way failed on another process"


def non_finite_inputs(layers: list[str]) -> str:
    """Say which hard layers were given numbers that are not finite.

    Args:
        layers: Their names, the first call first.
    """
    others = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return (
        f"{layers[0]}{others} got inputs that are not finite, which a hard layer turns into an ordinary loss, so the "
        "batch moves nothing and is counted in polystep/skipped: look for bad samples, or for an overflow in the "
        "network. Further such batches are counted without a warning."
    )


_GROUP_RULES = (
    Rule("lr", "number", "the step radius must be at least 0", lambda value: value >= 0),
    Rule("probe_radius", "number", "candidates need a radius above 0", lambda value: value > 0),
    Rule("epsilon", "number", "the temperature must be above 0", lambda value: value > 0),
    Rule("momentum", "number", "the memory must be in [0, 1)", lambda value: 0 <= value < 1),
    Rule("cost_memory", "number", "the memory must be in [0, 1), or None", lambda value: 0 <= value < 1, True),
    Rule("weight_decay", "number", "the decay must be at least 0", lambda value: value >= 0),
    Rule("whitening", "number", "the exponent must be in [0, 1]", lambda value: 0 <= value <= 1),
    Rule("span_floor", "number", "the share must be in [0, 1)", lambda value: 0 <= value < 1),
    Rule("rank", "whole number", "at least one direction must be probed, or None", lambda value: value >= 1, True),
    Rule("rotations", "whole number", "at least one polytope must be placed", lambda value: value >= 1),
    Rule("anchor_every", "whole number", "a basis is kept for at least 1 step", lambda value: value >= 1),
    Rule("rotation_bias", "number", "the lean must be in [0, 1]", lambda value: 0 <= value <= 1),
    Rule("radius_ratio", "number", "radii grow by a factor above 0", lambda value: value > 0),
    Rule(
        "response_grid",
        "whole number",
        "a grid has at least 3 nodes, and 0 is none",
        lambda v: 0 <= v not in {1, 2},
        True,
    ),
    Rule("particle_dim", "whole number", "use at least 1, or None", lambda value: value >= 1, True),
    one_of("subspace", SUBSPACES),
    one_of("polytope", POLYTOPES),
    Rule(
        "transport",
        "name",
        f"choose from {', '.join(TRANSPORTS)}, or give one of lightning_polystep.transport with its settings",
        lambda value: value in TRANSPORTS,
    ),
    flag("maximize"),
)
_OPTIMIZER_RULES = (
    Rule("importance_sampling", "number", "the error must be at least 0 (all samples)", lambda value: value >= 0),
    Rule("seed", "whole number", "any will do, or None", optional=True),
)
_ENGINE_RULES = (
    one_of("evaluation", ("auto", "tape", "loop")),
    at_least("memory_budget", 1),
    at_least("max_candidates", 1, optional=True),
    at_least("check_replicas_every_n_steps", 1),
)
_STRATEGY_RULES = (
    *_ENGINE_RULES,
    one_of("foreign_optimizer", ("replace", "error")),
    Rule("optimizer_options", "mapping", "give PolyStep's arguments by name, or None", optional=True),
    flag("show_plan"),
    flag("log_per_block"),
    one_of("start_method", ("popen", "spawn", "fork")),
    at_least("data_parallel_size", 1, others=("auto",)),
    at_least("candidate_parallel_size", 1, others=("auto",)),
    Rule("timeout", "number", "give a timedelta, or seconds above 0", lambda value: value > 0),
)
_FINITE = {"lr", "probe_radius", "epsilon", "momentum", "weight_decay"}


def check_group(group: dict[str, Any]) -> None:
    """Refuse values that are out of range or of the wrong type, and names that are unknown.

    Raises:
        ArgumentTypeError: Naming the argument, the value and what is allowed.
        ValueError: Likewise.
    """
    # Objects with settings of their own have checked these.
    values = {name: value for name, value in group.items() if not isinstance(value, Transport | Schedule)}
    if isinstance(group["epsilon"], Schedule) and lowest(group["epsilon"]) <= 0:
        raise ValueError(f"PolyStep(epsilon={group['epsilon']!r}): the temperature must be above 0.")
    check("PolyStep", values, _GROUP_RULES)
    if group["radius_ratio"] != 1 and group["rotations"] == 1:
        told = f"PolyStep(radius_ratio={group['radius_ratio']!r})"
        raise ValueError(f"{told}: one polytope has one radius, so set rotations to as many radii as you want.")


def check_optimizer(kind: str, params: Any, **options: Any) -> None:
    """Refuse what is not a matter of a group.

    Args:
        kind: Name of the optimizer.
        params: What the optimizer is to train.
        options: Its other arguments.

    Raises:
        ArgumentTypeError: Naming the argument, the value and what is allowed.
        ValueError: Likewise.
    """
    if isinstance(params, nn.Module):
        name = type(params).__name__
        raise ArgumentTypeError(
            f"{kind}({name}(...)): it takes parameters, so give it those of the module, .parameters()."
        )
    if isinstance(params, torch.Tensor):
        raise ArgumentTypeError(f"{kind}(a tensor of shape {tuple(params.shape)}): put it into a list.")
    check(kind, options, _OPTIMIZER_RULES)


def check_some(kind: str, params: list[Any]) -> None:
    """Refuse to train nothing.

    Args:
        kind: Name of the optimizer.
        params: What it is to train.

    Raises:
        ArgumentRangeError: If there is nothing.
    """
    if not params:
        raise ArgumentRangeError(
            f"{kind}([]): there is no parameter to train, so give it those of a module that has some, .parameters()."
        )


def check_closure(closure: Any) -> None:
    """Refuse what is not a function.

    Raises:
        ArgumentTypeError: With what to write.
    """
    if not callable(closure):
        raise ArgumentTypeError(
            f"Engine.step({type(closure).__name__}): it takes a function that computes the loss, because candidates "
            "run it too: engine.step(lambda: criterion(model(x), y))."
        )


def check_engine(module: Any, optimizer: Any, **options: Any) -> None:
    """Refuse an engine's arguments.

    Args:
        module: Has to be a module.
        optimizer: Has to have an engine's binding, as PolyStep.
        options: The other arguments.

    Raises:
        ArgumentTypeError: Naming the argument, the value and what is allowed.
        ValueError: Likewise.
    """
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"Engine(module={type(module).__name__}(...)): it must be a torch.nn.Module.")
    if not hasattr(optimizer, "binding"):
        kind = type(optimizer).__name__
        msg = f"Engine(optimizer={kind}(...)): it must be lightning_polystep.PolyStep(module.parameters())."
        raise ArgumentTypeError(msg)
    check("Engine", options, _ENGINE_RULES)


def check_strategy(**options: Any) -> None:
    """Refuse a strategy's arguments.

    Args:
        options: The arguments by name.

    Raises:
        ArgumentTypeError: Naming the argument, the value and what is allowed.
        ValueError: Likewise.
    """
    if isinstance(options.get("timeout"), timedelta):
        options["timeout"] = options["timeout"].total_seconds()
    check("PolyStepStrategy", options, _STRATEGY_RULES)


def check_option_names(options: Mapping[str, Any], kind: type) -> None:
    """Refuse options that an optimizer's class does not have.

    Args:
        options: By name.
        kind: The class.

    Raises:
        ArgumentTypeError: Naming what there is.
    """
    known = [name for name in inspect.signature(kind).parameters if name != "params"]
    unknown = [name for name in options if name not in known]
    if unknown:
        msg = f"{kind.__name__} has no option {unknown[0]!r}: choose from {', '.join(known)}."
        raise ArgumentTypeError(msg)


def check_finite(kind: str, groups: list[dict[str, Any]]) -> None:
    """Refuse a step with a radius that something (a schedule, a hook) has set to what is no finite number.

    Args:
        kind: Name of the optimizer.
        groups: Its parameter groups.

    Raises:
        ValueError: Naming the option, before anything moves.
    """
    for group in groups:
        for name in group.keys() & _FINITE:
            if not math.isfinite(lowest(group[name])):
                value = float(lowest(group[name]))
                msg = f"{kind}'s {name} was set to {value} during training: a step needs a finite number."
                raise ValueError(msg)


def check_state(state: dict[str, Any], known_format: int, kind: str) -> None:
    """Refuse the state of another optimizer.

    Args:
        state: What a checkpoint holds.
        known_format: The format that this version writes.
        kind: Name of the optimizer that is to load it.

    Raises:
        ValueError: Saying how to start from the weights alone.
    """
    own = state.get("polystep")
    # Before there were others, a state did not say whose it was.
    if own is None or own.get("optimizer", "PolyStep") != kind:
        msg = (
            "This checkpoint holds the state of another optimizer: load only the weights to start from them, with "
            "MyModule.load_from_checkpoint(path), and fit without ckpt_path."
        )
        raise ValueError(msg)
    if own["format"] != known_format:
        msg = f"This checkpoint has PolyStep state format {own['format']}, this version reads {known_format}."
        raise ValueError(msg)


def check_parameters(module: nn.Module) -> None:
    """Refuse modules that have nothing to probe, or something that cannot be.

    Raises:
        ValueError: Naming the parameter.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            msg = f"{name} is lazy and has no shape yet: run one batch through the module before training."
            raise ValueError(msg)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            msg = f"{name} is complex, which PolyStep does not probe: keep its real and imaginary parts as parameters."
            raise ValueError(msg)
    if not any(parameter.requires_grad and parameter.numel() for parameter in module.parameters()):
        msg = "The module has no trainable parameter: unfreeze some with requires_grad_(True)."
        raise ValueError(msg)


def check_owned(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Refuse parameters that no part of the module holds: candidates are put in their place in the module.

    Raises:
        ValueError: Saying where to keep them.
    """
    owned = set(module.parameters())
    foreign = [p for group in optimizer.param_groups for p in group["params"] if p not in owned]
    if foreign:
        shape = tuple(foreign[0].shape)
        msg = (
            f"{type(optimizer).__name__} holds a parameter of shape {shape} that is not the module's: assign it, or "
            "the module that has it, as an attribute of the module."
        )
        raise ValueError(msg)


def none_as_nan(evaluate: Callable[[], torch.Tensor | None], like: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return what gives NaN where a step gives no loss: such a candidate neither counts nor wins.

    A step may return None to skip a batch, for example because its loss is too large, and a candidate may be such a
    case where the commit pass was not.

    Args:
        evaluate: Runs the step again.
        like: The loss of the commit pass.

    Example:
        >>> none_as_nan(lambda: None, torch.tensor(1.0))()
        tensor(nan)
    """

    def evaluated() -> torch.Tensor:
        loss = evaluate()
        return like.new_full((), math.nan) if loss is None else loss

    return evaluated


def check_loss(loss: Any) -> torch.Tensor:
    """Return the loss of a step if it can be compared between candidates.

    Raises:
        ValueError: When there is no loss, or it is no floating-point number.
    """
    if not isinstance(loss, torch.Tensor) or not loss.is_floating_point():
        kind = f"a {loss.dtype} tensor" if isinstance(loss, torch.Tensor) else type(loss).__name__
        msg = f"The training step returned {kind} as its loss: return a floating-point scalar tensor."
        raise ValueError(msg)
    return loss
