"""Costs of choices: against a search for the best of all logits, and bit for bit against themselves."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import route_outcome_costs
from lightning_polystep.kernels.route_outcome_costs.reference import routes
from tests.kernels.cases import run
from tests.kernels.route_cases import case

NAME = "route_outcome_costs"
CASES = st.builds(
    case,
    samples=st.sampled_from((1, 2, 67)),
    outcomes=st.sampled_from((1, 2, 5, 300)),
    units=st.sampled_from((1, 3, 10)),
    candidates=st.sampled_from((1, 17)),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    own=st.booleans(),
)


@given(arguments=CASES)
def test_cpu_equals_the_reference_bit_for_bit(arguments):
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@given(arguments=CASES)
def test_equals_a_search_candidate_by_candidate(arguments):
    logits, changes, weight, losses = arguments
    costs = run("cpu", NAME, arguments)
    for u, v in itertools.product(range(weight.shape[1]), range(changes.shape[-1])):
        change = changes.expand(weight.shape[1], -1, -1)[u, :, v]
        after = (logits + change[:, None] * weight[:, u]).argmax(1)
        expected = sum(losses[n, after[n]] - losses[n, logits[n].argmax()] for n in range(len(logits)))
        assert costs[u, v] == expected


@given(arguments=CASES)
def test_routes_are_first_maxima(arguments):
    logits, changes, weight, _ = arguments
    changes = changes.expand(weight.shape[1], -1, -1)
    shifted = logits[:, None] + changes[..., None] * weight.T[:, None, None]
    assert torch.equal(routes(logits, changes, weight).long(), shifted.argmax(-1))


@pytest.mark.parametrize(("units", "candidates"), [(0, 6), (3, 0)])
@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_nothing_to_score(implementation, units, candidates):
    assert run(implementation, NAME, case(units=units, candidates=candidates)).shape == (units, candidates)


def test_neither_threads_nor_other_units_change_a_bit():
    logits, changes, weight, losses = case(200, 4, 20, 33, torch.float32)
    losses = torch.randn_like(losses)
    torch.set_num_threads(1)
    one = route_outcome_costs(logits, changes, weight, losses)
    torch.set_num_threads(2)
    assert torch.equal(route_outcome_costs(logits, changes, weight, losses), one)
    some = [17, 3]
    assert torch.equal(route_outcome_costs(logits, changes[some], weight[:, some], losses), one[some])


@pytest.mark.parametrize("own", [True, False])
def test_the_operator_is_declared_correctly(own):
    torch.library.opcheck(route_outcome_costs, case(own=own))


def test_wrong_arguments_are_refused():
    logits, changes, weight, losses = case()
    with pytest.raises(ValueError, match="logits must be"):
        route_outcome_costs(logits[:0], changes, weight, losses)
    with pytest.raises(TypeError, match="logits must be"):
        route_outcome_costs(logits.half(), changes, weight, losses)
    with pytest.raises(ValueError, match="changes must have shape"):
        route_outcome_costs(logits, changes[:2], weight, losses)
    with pytest.raises(TypeError, match="losses must be"):
        route_outcome_costs(logits, changes, weight, losses.float())
    with pytest.raises(ValueError, match="weight must have shape"):
        route_outcome_costs(logits, changes, weight[:2], losses)
