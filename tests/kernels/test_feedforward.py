"""The layers behind that the kernels share: losses against torch's, refusals, and tables in compiled code."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import step_function_dictionary
from lightning_polystep.kernels.feedforward import Behind, Scores, check_behind, check_scores, losses, step_function
from lightning_polystep.kernels.feedforward.cpu import pack
from lightning_polystep.kernels.feedforward.uniform import uniform_quantiser
from tests.kernels.cases import values
from tests.kernels.feedforward_cases import (
    DTYPES,
    LOSSES,
    Sizes,
    layers_behind,
    scores_case,
    torch_losses,
    uniform_table,
)

SIZES = Sizes(classes=19, behind=(5, 4, 17))


@pytest.mark.parametrize("dense", [False, True], ids=["classes", "dense"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_torch(loss, dense):
    head = Scores(*scores_case(SIZES, loss, torch.float64, dense=dense))
    expected = torch_losses(*head)
    torch.testing.assert_close(losses(head, head.scores), expected)
    packed = pack(Behind(*layers_behind(SIZES, torch.float64)), head)
    torch.testing.assert_close(torch.from_numpy(packed.losses), expected, rtol=1e-13, atol=1e-13)


def test_step_functions_are_tabulated_per_unit():
    boundaries, levels = step_function_dictionary(torch.sign, 3)
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    assert step_function(x, boundaries[None], levels[None]).tolist() == [[-1, 0, 1]]
    shifts = torch.tensor([[0.0], [1.0], [3.0]])
    assert step_function(x, boundaries + shifts, levels + shifts).tolist() == [[-1, 0, 2]]


@pytest.mark.parametrize("own_tables", [False, True], ids=["one table", "a table per unit"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_units_change_exactly_outside_their_interval(dtype, own_tables):
    behind = Behind(*layers_behind(SIZES, dtype, own_tables=own_tables))
    packed = pack(behind, Scores(*scores_case(SIZES, "mse", dtype)))
    for layer, size in enumerate(SIZES.behind):
        part = slice(packed.starts[layer], packed.starts[layer] + size)
        value, lower, upper = (torch.from_numpy(x[:, part]) for x in (packed.values, packed.lower, packed.upper))
        table = behind.boundaries[layer], behind.levels[layer]

        def function(x, table=table):
            return step_function(x, *table) if table[1].numel() else x.relu()

        assert torch.equal(value, function(behind.preactivations[layer]))
        assert torch.equal(value, function(lower.clamp(min=-1e9)))
        last = torch.nextafter(upper, torch.full_like(upper, -torch.inf)).clamp(max=1e9)
        assert torch.equal(value, function(last))
        assert (function(upper) != value)[upper < torch.inf].all()
        assert packed.starts[layer + 1] - packed.starts[layer] == 64


@given(step=st.floats(1e-3, 10), steps=st.integers(1, 300), dtype=st.sampled_from(DTYPES))
def test_a_uniform_quantiser_is_one_to_the_last_bit(step, steps, dtype):
    step = float(torch.tensor(step, dtype=dtype))
    boundaries, levels = uniform_table(steps, step, dtype)
    low = -(steps // 3)
    assert uniform_quantiser(boundaries, levels)[:3].tolist() == [step, low, low + steps]
    for moved in (torch.inf, -torch.inf):
        other = boundaries.clone()
        other[0, -1] = other[0, -1].nextafter(other.new_tensor(moved))
        assert uniform_quantiser(other, levels).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "levels",
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.5], [0.0, -1.0, -2.0], [0.0, 0.0, 1.0], [0.0]],
    ids=["no zero", "uneven", "falling", "two zeros", "one level"],
)
def test_other_step_functions_are_no_uniform_quantisers(levels):
    boundaries = torch.arange(len(levels) - 1)[None] + 0.5
    assert uniform_quantiser(boundaries, torch.tensor([levels])).tolist() == [0, 0, 0, 0]


def test_tables_of_single_units_are_no_uniform_quantiser():
    boundaries, levels = uniform_table(5, 0.25, torch.float64)
    assert uniform_quantiser(boundaries.repeat(2, 1), levels.repeat(2, 1)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"target": torch.tensor([0, 1, 2, 3, 19])}, ValueError, "outside 0 to 18"),
        ({"target": torch.zeros(5, 2)}, ValueError, "target must have shape"),
        ({"scores": torch.zeros(5, 19).half()}, TypeError, "scores must be float32 or float64"),
        ({"scores": torch.zeros(5, 0)}, ValueError, "neither of them 0"),
        ({"loss": "mse"}, ValueError, "label_smoothing"),
    ],
)
def test_wrong_scores_are_refused(change, error, message):
    head = Scores(*scores_case(SIZES, "cross_entropy", torch.float64))
    check_scores(head, "op")
    with pytest.raises(error, match=message):
        check_scores(head._replace(**change), "op")


def first(tensors, other):
    return (other, *tensors[1:])


@pytest.mark.parametrize(
    ("field", "change", "error", "message"),
    [
        ("weights", lambda w: w[:-1], ValueError, "one weight more"),
        ("weights", lambda w: first(w, w[0].T), ValueError, r"weights\[0\] must have shape"),
        ("preactivations", lambda h: first(h, h[0].float()), TypeError, r"behind_preactivations\[0\] must be"),
        ("boundaries", lambda b: first(b, b[0].flip(1)), ValueError, r"behind_boundaries\[0\] must ascend"),
        ("boundaries", lambda b: (b[0], b[0], b[2]), ValueError, r"behind_levels\[1\] is empty, as for ReLU"),
        ("levels", lambda v: first(v, v[0][:, 1:]), ValueError, r"behind_levels\[0\] must have shape"),
        ("boundaries", lambda b: first(b, b[0].repeat(2, 1)), ValueError, "1 or all 5 units, got 2"),
    ],
)
def test_wrong_layers_are_refused(field, change, error, message):
    behind = Behind(*(tuple(part) for part in layers_behind(SIZES, torch.float64)))
    head = Scores(*scores_case(SIZES, "mse", torch.float64))
    arguments = head, values(5, 3, dtype=torch.float64), values(5, 6, dtype=torch.float64), "op"
    check_behind(behind, *arguments)
    with pytest.raises(error, match=message):
        check_behind(behind._replace(**{field: change(getattr(behind, field))}), *arguments)


def test_wrong_shifts_are_refused():
    behind, head = Behind((), (), (), (torch.ones(19, 3),)), Scores(*scores_case(SIZES, "mse", torch.float32))
    for shape in ((5,), (4, 6), (2, 5, 6)):
        with pytest.raises(ValueError, match="shifts must have shape"):
            check_behind(behind, head, torch.ones(5, 3), torch.ones(shape), "op")
