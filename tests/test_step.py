"""Propose, transport and move, each against its equation written out in loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.blocks import find_blocks
from lightning_polystep.layers import QuantLinear
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.polytopes import POLYTOPES
from lightning_polystep.randomness import generator
from lightning_polystep.schedules import Linear
from lightning_polystep.sites import update_statistics
from lightning_polystep.step import (
    adapt_reach,
    is_flat,
    learn_inputs,
    move,
    null_candidates,
    observe,
    propose,
    transport,
)
from lightning_polystep.transport import KLRelaxed, Sample, Sinkhorn, normalise

GROUP = {"epsilon": 2.0, "transport": "softmax"}
F64 = torch.float64


def weigh(costs, step=0, seed=0, name="w", **group):
    return transport(torch.as_tensor(costs, dtype=F64), {**GROUP, **group}, seed=seed, step=step, name=name)


# Observe.


def test_rotations_are_independent_polytopes_of_one_particle():
    block = block_of(rows=2, subspace="full", dim=4)
    (once,) = propose(block, None, seed=0, step=0, rank=4).directions
    (both,) = propose(block, None, seed=0, step=0, rank=4, rotations=2).directions
    assert both.shape == (16, 4)
    assert torch.equal(both[:4], once[:4])
    assert torch.equal(both[8:], -both[:8]), "mirrored as a whole"
    for axes in (both[:4], both[4:8]):
        torch.testing.assert_close(axes @ axes.T, torch.eye(4), rtol=0, atol=1e-6)
    assert not torch.allclose(both[:4].abs(), both[4:8].abs())


@pytest.mark.parametrize("subspace", ["full", "gaussian"])
def test_radii_grow_from_one_rotation_to_the_next_around_the_probe_radius(subspace):
    alike, ratio = ({"subspace": subspace, "dim": 4, "rows": 2}, 3.0)
    (usual,) = propose(block_of(**alike, rotations=3), None, seed=0, step=0, rank=4, rotations=3).directions
    block = block_of(**alike, rotations=3, radius_ratio=ratio)
    proposal = propose(block, None, seed=0, step=0, rank=4, rotations=3)
    for turn, wider in enumerate([1 / ratio, 1.0, ratio]):
        one = slice(4 * turn, 4 * turn + 4)
        torch.testing.assert_close(proposal.directions[0, one], wider * usual[one])
    assert torch.equal(proposal.directions[0, 12:], -proposal.directions[0, :12])
    # The barycentre of all weight on one vertex is that vertex, wherever it is.
    weights = torch.zeros(2, 1, 24)
    weights[:, 0, 11] = 1.0
    torch.testing.assert_close(move(proposal, weights)[0], 2 * proposal.directions[0, 11])


@pytest.mark.parametrize("subspace", ["gaussian", "sparse"])
def test_an_anchored_basis_is_kept_while_its_rotation_is_fresh(subspace):
    block = block_of(dim=12, subspace=subspace, anchor_every=3)

    def axes(step, rank=4):
        return propose(block, None, seed=0, step=step, rank=rank).directions[0, :4].double()

    def inside(rows, others):
        return others @ torch.linalg.pinv(rows) @ rows

    kept = [axes(step) for step in (3, 4, 5)]
    for other in kept[1:]:
        assert not torch.allclose(other, kept[0])
        torch.testing.assert_close(inside(kept[0], other), other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(inside(kept[0], axes(6)), axes(6), atol=1e-2)
    assert torch.equal(axes(4), kept[1])


def test_rotated_bases_are_turned_anew_when_they_are_kept():
    block = block_of(dim=6, rows=1, subspace="joint", anchor_every=2)
    first, second = (propose(block, None, seed=0, step=step, rank=3).directions[0, :3].double() for step in (0, 1))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second @ torch.linalg.pinv(first) @ first, second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("subspace", ["gaussian", "joint", "full"])
@pytest.mark.parametrize("polytope", ["orthoplex", "simplex"])
def test_a_biased_polytope_leans_towards_the_last_move(subspace, polytope):
    def furthest(bias):
        block = block_of(dim=8, rows=1, subspace=subspace, polytope=polytope, rotation_bias=bias)
        moves = torch.zeros(1, 8)
        moves[0, 2] = 0.1
        vertices = propose(block, None, seed=0, step=1, rank=8, moves=moves).directions[0]
        return float((vertices[:, 2] / vertices.norm(dim=1)).max())

    assert furthest(1.0) > furthest(0.0) + 0.05


def test_flips_are_not_turned_whatever_is_asked_for():
    layer = QuantLinear(5, 3, weight_format="binary")
    asked = PolyStep(layer.parameters(), subspace="flips", rotation_bias=1.0, anchor_every=2)
    (block,) = find_blocks(layer, asked.param_groups)
    directions = propose(block, None, seed=0, step=1, rank=6, moves=torch.ones(3, 6)).directions
    assert (directions != 0).sum(-1).eq(1).all(), "each candidate is one weight"


def test_flips_have_no_radius_to_vary():
    layer = QuantLinear(4, 2, weight_format="binary")
    (group,) = PolyStep(layer.parameters(), subspace="flips", rotations=2, radius_ratio=5.0).param_groups
    plain = {**group, "radius_ratio": 1.0}
    pairs = [
        propose(find_blocks(layer, [each])[0], None, seed=0, step=0, rank=4, rotations=2) for each in (group, plain)
    ]
    assert torch.equal(*(pair.directions for pair in pairs))


def test_observe_and_learn_keep_what_the_sites_saw():
    layer, inputs = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    statistics = {}
    for _ in range(2):
        with observe(layer, find_blocks(layer, PolyStep(layer.parameters()).param_groups), {""}) as seen:
            layer(inputs)
        learn_inputs(seen.take_moments(), statistics)
        learn_inputs(seen.take_moments(), statistics)  # nothing is learnt twice
    assert statistics[""].batches == 2
    assert statistics[""].moment.tolist() == [[5.0, 7.0], [7.0, 10.0]]


# Propose.


def block_of(rows=4, dim=6, **group):
    weight = nn.Parameter(torch.randn(rows, dim))
    (group,) = PolyStep([weight], **{"subspace": "gaussian", **group}).param_groups
    return Block("w", (weight,), ("w",), group, rows, dim, group["subspace"])


@pytest.mark.parametrize("polytope", sorted(POLYTOPES))
@pytest.mark.parametrize(
    ("rank", "particle_dim", "particles", "dim"),
    [(4, None, 1, 4), (4, 2, 2, 2), (5, 2, 2, 2), (3, 8, 1, 3), (1, 2, 1, 1), (100, None, 1, 6), (6, 1, 6, 1)],
)
def test_a_proposal_has_the_vertices_of_every_particle(polytope, rank, particle_dim, particles, dim):
    block = block_of(polytope=polytope, particle_dim=particle_dim)
    proposal = propose(block, None, seed=0, step=0, rank=rank)
    assert proposal.directions.shape == (particles, POLYTOPES[polytope].count(dim), 6)
    assert proposal.directions.dtype == torch.float32
    assert proposal.particle_dim == dim
    assert proposal.rows.tolist() == [0, 1, 2, 3]
    assert proposal.reach.tolist() == [1.0] * 4
    torch.testing.assert_close(proposal.directions.sum(1), torch.zeros(particles, 6), atol=1e-5, rtol=0)


def test_directions_are_rotated_vertices_in_the_basis():
    """In the full space the basis is the identity, so a particle's Gram matrix is its polytope's."""
    block = block_of(rows=8, dim=3, subspace="full", particle_dim=3, polytope="simplex")
    block.dim = 3
    (directions,) = propose(block, None, seed=0, step=0, rank=3).directions
    vertices = POLYTOPES["simplex"].vertices(3).float()
    torch.testing.assert_close(directions @ directions.T, vertices @ vertices.T)
    assert not torch.allclose(directions, vertices)


def test_particles_of_a_row_have_rotations_of_their_own():
    block = block_of(subspace="full", dim=4, particle_dim=2)
    first, second = propose(block, None, seed=0, step=0, rank=4).directions
    torch.testing.assert_close(first[:, 2:], torch.zeros(4, 2))
    torch.testing.assert_close(second[:, :2], torch.zeros(4, 2))
    assert not torch.allclose(first[:, :2], second[:, 2:])


def test_a_proposal_is_a_function_of_seed_step_and_name():
    block = block_of()
    first = propose(block, None, seed=1, step=2, rank=3, most_rows=2)
    torch.randn(10)
    again = propose(block, None, seed=1, step=2, rank=3, most_rows=2)
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(first.rows, again.rows)
    for seed, step in [(2, 2), (1, 3)]:
        assert not torch.equal(propose(block, None, seed=seed, step=step, rank=3).directions, first.directions)
    block.name = "other"
    assert not torch.equal(propose(block, None, seed=1, step=2, rank=3).directions, first.directions)


def test_rows_take_turns_when_not_all_are_probed():
    block, reach = block_of(rows=10), torch.arange(10.0)
    chosen = [propose(block, None, reach, seed=0, step=step, rank=2, most_rows=3) for step in range(60)]
    for proposal in chosen:
        assert len(set(proposal.rows.tolist())) == 3
        assert proposal.rows.tolist() == sorted(proposal.rows.tolist())
        assert proposal.reach.tolist() == proposal.rows.tolist(), "each row brings its own reach"
    assert {row for proposal in chosen for row in proposal.rows.tolist()} == set(range(10))


def test_inputs_are_spanned():
    layer = nn.Linear(3, 2, bias=False)
    (block,) = find_blocks(layer, PolyStep(layer.parameters()).param_groups)
    statistics = update_statistics(None, torch.diag(torch.tensor([1.0, 0.0, 4.0], dtype=F64)))
    proposal = propose(block, statistics, seed=0, step=0, rank=128)
    assert proposal.particle_dim == 2
    assert (proposal.directions[..., 1] == 0).all()


# Transport.


def rms(numbers):
    return math.sqrt(sum(number * number for number in numbers) / len(numbers))


def softmax_by_hand(costs, epsilon):
    """Rows of particles of finite costs that spread about alike: the weights, and the spread of all."""
    centred = [[[c - sum(p) / len(p) for c in p] for p in row] for row in costs]
    units = [rms([c for p in row for c in p]) for row in centred]
    powers = [
        [[math.exp(-c / (unit * epsilon)) for c in p] for p in row] for row, unit in zip(centred, units, strict=True)
    ]
    return [[[w / sum(p) for w in p] for p in row] for row in powers], rms(
        [c for row in centred for p in row for c in p]
    )


def test_costs_are_centred_per_particle_and_divided_by_the_spread_of_their_row():
    costs = (torch.randn(3, 2, 4, dtype=F64) * torch.tensor([1.0, 3.0, 0.5])[:, None, None] + 5).tolist()
    expected, sigma = softmax_by_hand(costs, 0.7)
    result = weigh(costs, epsilon=0.7)
    torch.testing.assert_close(result.weights, torch.tensor(expected, dtype=F64))
    assert float(result.spread) == pytest.approx(sigma)
    entropies = [-sum(w * math.log(w) for w in p) for row in expected for p in row]
    assert float(result.effective_vertices) == pytest.approx(sum(math.exp(e) for e in entropies) / len(entropies))


@given(st.integers(0, 1000), st.floats(1e-6, 1e6), st.floats(-10, 10))
def test_neither_the_unit_of_the_loss_nor_its_level_matters(seed, scale, level):
    costs = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=F64)
    levels = level * torch.arange(8, dtype=F64).reshape(4, 2, 1)
    torch.testing.assert_close(weigh(scale * (costs + levels)).weights, weigh(costs).weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_costs_that_are_not_finite_never_win_and_do_not_count(bad):
    costs = torch.tensor([[[1.0, 2.0, 4.0, bad]], [[3.0, bad, 2.0, 1.0]]], dtype=F64)
    result = weigh(costs)
    assert (result.weights[~torch.isfinite(costs)] == 0).all()
    without = weigh([[[1.0, 2.0, 4.0]], [[3.0, 2.0, 1.0]]])
    torch.testing.assert_close(result.weights[0, 0, :3], without.weights[0, 0])
    torch.testing.assert_close(result.weights[1, 0, [0, 2, 3]], without.weights[1, 0])
    assert result.spread == without.spread


def test_a_particle_without_a_finite_cost_goes_nowhere():
    result = weigh([[[math.nan] * 4], [[1.0, 2.0, 3.0, 4.0]]])
    assert result.weights[0, 0].tolist() == [0.25] * 4
    assert float(result.flat_rows) == 0.5
    everything = weigh([[[math.inf] * 4]])
    assert everything.weights.flatten().tolist() == [0.25] * 4
    assert float(everything.spread) == 0


def test_flat_rows_share_and_do_not_move():
    result = weigh([[[2.0] * 6], [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]])
    assert result.weights[0, 0].tolist() == pytest.approx([1 / 6] * 6)
    assert float(result.flat_rows) == 0.5
    proposal = propose(block_of(rows=2, subspace="full", dim=3), None, seed=0, step=0, rank=3)
    displacement = move(proposal, result.weights)
    assert displacement[0].abs().max() < 1e-6
    assert displacement[1].norm() > 0.1


def test_rows_do_not_disturb_each_other():
    active = torch.randn(1, 1, 6, dtype=F64)
    others = torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=F64)[:, None, None] * torch.randn(4, 1, 6, dtype=F64)
    torch.testing.assert_close(weigh(torch.cat([others, active])).weights[4], weigh(active).weights[0])


def test_a_quiet_row_learns_as_fast_as_a_loud_one():
    costs = torch.randn(1, 1, 6, dtype=F64)
    result = weigh(torch.cat([costs, 0.1 * costs]))
    torch.testing.assert_close(result.weights[0], result.weights[1])
    torch.testing.assert_close(result.row_spread[0], 10 * result.row_spread[1])


def test_noise_far_below_the_block_is_not_taken_for_a_signal():
    costs = torch.randn(3, 1, 6, dtype=F64)
    costs[1] *= 1e-6
    result = weigh(costs)
    expected = torch.softmax(-(costs[1] - costs[1].mean()) / (GROUP["epsilon"] * 0.02 * result.spread), dim=-1)
    torch.testing.assert_close(result.weights[1], expected)
    assert (result.weights[1] - 1 / 6).abs().max() < 1e-3
    assert float(result.flat_rows) == pytest.approx(1 / 3)


@pytest.mark.parametrize("choice", ["sinkhorn", Sinkhorn(), KLRelaxed(tau=0.3), "kl", "softmax"])
def test_a_transport_gets_the_normalised_costs_and_the_temperature(choice):
    costs = 3 * torch.randn(4, 2, 6, dtype=F64) + 5
    chosen = {"sinkhorn": Sinkhorn(), "kl": KLRelaxed()}.get(choice, choice)
    result = weigh(costs, epsilon=0.7, transport=choice)
    if choice == "softmax":
        expected = (*weigh(costs, epsilon=0.7)[:1], 0.0, True)
    else:
        expected = chosen.weigh(normalise(costs).costs, 0.7)
    torch.testing.assert_close(result.weights, expected[0], rtol=0, atol=0)
    assert float(result.marginal_error) == float(expected[1])
    assert (result.converged, result.one_sided) == (True, False)
    assert result.row_spread.tolist() == normalise(costs).row_spread.tolist()


def test_a_draw_is_a_function_of_seed_step_and_block():
    costs = torch.randn(30, 1, 6, dtype=F64)
    chosen = {"transport": "sample", "epsilon": 5.0}
    drawn = weigh(costs, seed=3, step=7, name="fc", **chosen).weights
    expected = Sample().weigh(normalise(costs).costs, 5.0, generator(3, 7, "transport/fc")).weights
    assert torch.equal(drawn, expected)
    for other in ({"seed": 4}, {"step": 8}, {"name": "fc2"}):
        assert not torch.equal(weigh(costs, **{"seed": 3, "step": 7, "name": "fc", **other}, **chosen).weights, drawn)


def test_only_a_transport_that_draws_gets_a_generator(monkeypatch):
    made = []
    monkeypatch.setattr("lightning_polystep.step.generator", lambda *key: made.append(key) or generator(*key))
    costs = torch.randn(3, 1, 4, dtype=F64)
    for choice in ("softmax", "sinkhorn", "kl"):
        weigh(costs, transport=choice)
    assert made == []
    weigh(costs, transport="sample", seed=1, step=2)
    assert made == [(1, 2, "transport/w")]


def test_the_temperature_may_follow_a_schedule():
    costs, cooling = torch.randn(3, 1, 4, dtype=F64), Linear(2.0, 1.0, steps=4)
    for step, epsilon in [(0, 2.0), (1, 1.75), (4, 1.0), (100, 1.0)]:
        assert torch.equal(weigh(costs, step, epsilon=cooling).weights, weigh(costs, epsilon=epsilon).weights)


@pytest.mark.parametrize("choice", [Sinkhorn(), KLRelaxed(tau=math.inf)])
def test_a_block_of_one_row_is_weighed_by_a_softmax(choice):
    costs = torch.randn(1, 2, 4, dtype=F64)
    result = weigh(costs, transport=choice)
    assert result.one_sided
    assert torch.equal(result.weights, weigh(costs).weights)
    assert not weigh(costs, transport=KLRelaxed(tau=5.0)).one_sided


def test_costs_are_never_differentiated():
    costs = torch.randn(3, 1, 4, dtype=F64, requires_grad=True)
    for choice in ("softmax", "sinkhorn", "kl", "sample"):
        result = transport(costs, {"epsilon": 1.0, "transport": choice}, seed=0, step=0, name="w")
        assert not any(part.requires_grad for part in result if isinstance(part, torch.Tensor))


def test_flatness_is_a_fiftieth_of_the_typical_row():
    spreads = torch.tensor([0.0, 0.0199, 0.0201, 1.0, 1.0, 1.0])
    assert is_flat(spreads).tolist() == [True, True, False, False, False, False]
    assert is_flat(torch.zeros(3)).tolist() == [True] * 3
    assert is_flat(torch.tensor([1e-9])).tolist() == [False]


def test_reach_doubles_to_sixteen_while_flat_and_comes_back():
    alive = torch.ones(2, dtype=F64)
    reach, seen = torch.ones(3), []
    for _ in range(6):
        reach = adapt_reach(reach, torch.cat([alive, torch.zeros(1, dtype=F64)]))
        seen.append(reach.tolist())
    assert seen == [[1, 1, wide] for wide in (2, 4, 8, 16, 16, 16)]
    back = []
    for _ in range(5):
        reach = adapt_reach(reach, torch.ones(3, dtype=F64))
        back.append(reach[2].item())
    assert back == [8, 4, 2, 1, 1]


# Move.


def random_proposal(particles=2, vertices=3, dim=5, rows=(0, 2, 3), reach=(1.0, 4.0, 1.0)):
    directions = torch.randn(particles, vertices, dim)
    return Proposal(block_of(4, dim), torch.tensor(rows), torch.tensor(reach), directions, 7, probe_radius=123.0)


def test_the_barycentre_is_that_of_the_equation():
    proposal = random_proposal()
    weights = torch.rand(3, 2, 3, dtype=F64)
    expected = torch.zeros(3, 5)
    for row in range(3):
        for particle in range(2):
            for vertex in range(3):
                expected[row] += weights[row, particle, vertex].float() * proposal.directions[particle, vertex]
    expected *= math.sqrt(7) * torch.tensor([[1.0], [4.0], [1.0]])
    result = move(proposal, weights)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("polytope", sorted(POLYTOPES))
@pytest.mark.parametrize("dim", [1, 2, 5, 10])
def test_on_a_slope_the_move_is_downhill_and_its_length_does_not_depend_on_the_dimension(polytope, dim):
    """To first order in 1 / epsilon the displacement is -g / (|g| epsilon), whatever the polytope and its dimension."""
    epsilon, gradient = 100.0, torch.randn(dim, dtype=F64)
    block = block_of(rows=1, dim=dim, subspace="full", polytope=polytope, particle_dim=dim)
    proposal = propose(block, None, seed=0, step=0, rank=dim)
    result = weigh((proposal.directions.double() @ gradient)[None], epsilon=epsilon)
    (displacement,) = move(proposal, result.weights).double()
    torch.testing.assert_close(displacement * epsilon, -gradient / gradient.norm(), rtol=0.05, atol=0.02)


# --- null candidates --------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([1.0, 1.0 + 1e-9, 1.0 + 1e-5, 0.5, math.nan, math.inf]), min_size=1, max_size=9))
def test_null_candidates_equal_a_loop(costs):
    null = sum(abs(cost - 1.0) <= 2 * 2.0**-23 for cost in costs)
    assert float(null_candidates(torch.tensor(costs, dtype=F64), torch.tensor(1.0, dtype=F64))) == null / len(costs)


def test_a_loss_of_zero_has_null_candidates():
    assert float(null_candidates(torch.tensor([0.0, 1e-30]), torch.tensor(0.0))) == 0.5


@pytest.mark.parametrize(("chosen", "share"), [(1, 0.0), (2, 0.5), (3, 1.0)])
def test_what_rows_of_a_softmax_do_alike_is_taken_away_in_proportion_to_how_many_move(chosen, share):
    block = Block("out", (nn.Parameter(torch.zeros(3, 2)),), ("w",), {}, rows=3, dim=2, subspace="full")
    reach = torch.ones(chosen, dtype=F64)
    proposal = Proposal(block, torch.arange(chosen), reach, torch.eye(2, dtype=F64)[None], 2, 1.0)
    weights = torch.rand(chosen, 1, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    alone = move(proposal, weights)
    block.competes = True
    torch.testing.assert_close(move(proposal, weights), alone - share * alone.mean(0))
