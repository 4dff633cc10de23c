"""Arguments of the kernels for feed-forward networks, and networks that run candidate by candidate."""

import itertools
from typing import NamedTuple

import hypothesis.strategies as st
import torch
import torch.nn.functional as F

from lightning_polystep.kernels import step_function_dictionary
from lightning_polystep.kernels.feedforward.reference import activation
from tests.kernels.cases import run, values

LOSSES = ("cross_entropy", "mse")
DTYPES = (torch.float32, torch.float64)


class Sizes(NamedTuple):
    samples: int = 5
    classes: int = 4
    candidates: int = 6
    units: int = 3
    behind: tuple[int, ...] = ()  # units of each layer behind
    steps: int = 4  # boundaries of each step function
    relu: tuple[bool, ...] = (False, True, False)  # which layers behind are ReLU
    uniform: bool = False  # whether the step functions are uniform quantisers


SIZES = st.builds(
    Sizes,
    samples=st.sampled_from((1, 2, 5, 67)),  # more than the block of samples that is summed in float32
    classes=st.sampled_from((1, 2, 4, 16, 32)),
    candidates=st.sampled_from((1, 2, 17)),
    units=st.sampled_from((1, 3, 10)),
    behind=st.sampled_from(((), (1,), (5,), (17, 4), (3, 40, 2))),
    steps=st.sampled_from((0, 1, 4, 6, 40)),
    relu=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    uniform=st.booleans(),
)
OPTIONS = {
    "sizes": SIZES,
    "own_shifts": st.booleans(),
    "own_tables": st.booleans(),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 2**32),
}


def table(rows, sizes, dtype, dyadic=False):
    """Boundaries and levels of step functions, with repeated boundaries and levels where they are dyadic."""
    if sizes.uniform:
        return tuple(part.repeat(rows, 1) for part in uniform_table(sizes.steps, 0.25 if dyadic else 0.09, dtype))
    boundaries = values(rows, sizes.steps, dtype=dtype, dyadic=dyadic).sort(1).values
    return boundaries, values(rows, sizes.steps + 1, dtype=dtype, dyadic=dyadic)


def uniform_table(steps, step, dtype):
    """Boundaries and levels of a quantiser, a third of whose codes are negative."""
    low, high = -(steps // 3), steps - steps // 3

    def quantiser(x):
        return (x / step).round().clamp(low, high) * step

    return tuple(part[None] for part in step_function_dictionary(quantiser, steps + 1, dtype))


def layers_behind(sizes, dtype, dyadic=False, own_tables=False):
    """Pre-activations, boundaries and levels of the layers behind, and the weights of all."""
    n, c, _, u, behind, _, relu, _ = sizes
    nothing = torch.empty(1, 0, dtype=dtype)
    hidden = [values(n, h, dtype=dtype, dyadic=dyadic) for h in behind]
    tables = [
        (nothing, nothing) if is_relu else table(h if own_tables else 1, sizes, dtype, dyadic)
        for h, is_relu in zip(behind, relu, strict=False)
    ]
    boundaries, levels = [pair[0] for pair in tables], [pair[1] for pair in tables]
    widths = (u, *behind, c)
    weights = [values(after, before, dtype=dtype, dyadic=dyadic) for before, after in itertools.pairwise(widths)]
    return hidden, boundaries, levels, weights


def scores_case(sizes, loss, dtype, dyadic=False, dense=False):
    """The arguments that all operators end with."""
    n, c = sizes.samples, sizes.classes
    target = torch.rand(n, c) if dense else torch.randint(c, (n,))
    if dense and dyadic:
        target = (target * 8).round() / 8
    return values(n, c, dtype=dtype, dyadic=dyadic), target, loss, 0.0 if loss == "mse" else 0.125


def case(name, sizes, loss, dtype=torch.float64, dyadic=False, dense=False, own_shifts=False, own_tables=False):
    """Arguments of an operator; ``own_...``: different for each unit."""
    n, c, v, u, *_ = sizes
    scored = c if name == "score_direct_costs" else u
    shifts = values(*((scored,) if own_shifts else ()), n, v, dtype=dtype, dyadic=dyadic)
    tail = scores_case(sizes, loss, dtype, dyadic, dense)
    if name == "score_direct_costs":
        return shifts, *tail
    preactivation = values(n, u, dtype=dtype, dyadic=dyadic)
    behind = layers_behind(sizes, dtype, dyadic, own_tables)
    if name == "unit_change_losses":
        return preactivation, *behind, *tail  # any numbers will do as changes
    if name in {"relu_direct_costs", "relu_grid_costs"}:
        return preactivation, shifts, *behind, *tail
    return preactivation, shifts, *table(u if own_tables else 1, sizes, dtype, dyadic), *behind, *tail


def grid_limits(sizes, dtype):
    """Gain, lower, upper and offset of relu_grid_costs; some pairs of limits leave nothing between them."""
    n, u = sizes.samples, sizes.units
    lower = values(n, u, dtype=dtype, mean=-0.5)
    return (
        values(n, u, dtype=dtype, mean=1.0),
        lower,
        lower + values(n, u, dtype=dtype, mean=1.0),
        values(n, dtype=dtype),
    )


def network(first, behind):
    """All pre-activations of a network, and the scores, from those of its first layer: a function and its state."""
    _, boundaries, levels, weights = behind

    def forward(preactivation):
        states = [preactivation]
        for layer, weight in enumerate(weights):
            function = first if layer == 0 else (boundaries[layer - 1], levels[layer - 1])
            states.append(activation(states[-1], *function) @ weight.T)
        return states

    return forward


def torch_losses(scores, target, loss, smoothing):
    """Loss of each sample, by the functions of torch."""
    if loss == "mse":
        dense = target if target.is_floating_point() else F.one_hot(target, scores.shape[-1])
        return F.mse_loss(scores.double(), dense.double(), reduction="none").mean(1)
    target = target.double() if target.is_floating_point() else target
    return F.cross_entropy(scores.double(), target, reduction="none", label_smoothing=smoothing)


def candidate_by_candidate(preactivation, shifts, losses):
    """Costs by running ``losses`` on shifted pre-activations."""
    units, count = preactivation.shape[1], shifts.shape[-1]
    shifts = shifts.expand(units, -1, -1)
    expected, before = torch.empty(units, count, dtype=torch.float64), losses(preactivation)
    for u, v in itertools.product(range(units), range(count)):
        moved = preactivation.clone()
        moved[:, u] += shifts[u, :, v]
        expected[u, v] = (losses(moved) - before).sum()
    return expected


def assert_threads_change_nothing(name, operator, sizes):
    arguments = case(name, sizes, "cross_entropy", torch.float32)
    torch.set_num_threads(1)
    one = operator(*arguments)
    torch.set_num_threads(2)
    assert operator(*arguments).numpy().tobytes() == one.numpy().tobytes()


def assert_cpu_is_close(name, sizes, loss, dtype, tolerance, **options):
    arguments = case(name, sizes, loss, dtype, **options)
    found, expected = run("cpu", name, arguments), run("reference", name, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-6 if tolerance > 1e-8 else 1e-11, atol=tolerance)


def assert_cpu_is_equal(name, sizes, dtype, **options):
    arguments = case(name, sizes, "mse", dtype, dyadic=True, **options)
    assert torch.equal(run("cpu", name, arguments), run("reference", name, arguments))
