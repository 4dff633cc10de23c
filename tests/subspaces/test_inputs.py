"""The input-spanned basis: only directions that the inputs have, in units of pre-activation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.blocks import find_blocks
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.randomness import generator
from lightning_polystep.sites import update_statistics
from lightning_polystep.step import move, propose
from lightning_polystep.subspaces import InputSubspace
from lightning_polystep.subspaces import inputs as inputs_module
from lightning_polystep.subspaces.inputs import whitened_eigenbasis

WHITENINGS = st.sampled_from([0.0, 0.35, 0.5, 1.0])
SUBSPACE = InputSubspace()


def second_moment(X):
    return X.T @ X / len(X)


def inputs(seed, samples=50, dim=6, rank=6):
    """Inputs of very different sizes along a few directions."""
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(samples, rank, generator=draw, dtype=torch.float64)
    sizes = 10 ** torch.linspace(-0.5, 0.5, rank, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(dim, rank, generator=draw, dtype=torch.float64)).Q.T
    return factor * sizes @ mix


def block(dim):
    return Block("site", (), (), {}, 1, dim, "inputs")


def basis(X, rank, whitening=0.35, seed=0):
    statistics = update_statistics(None, second_moment(X))
    group = {"whitening": whitening, "span_floor": 0.01}
    return SUBSPACE.basis(block(X.shape[1]), rank, group, statistics, generator(seed, 0, "basis"))


@given(st.integers(0, 1000), WHITENINGS)
def test_a_unit_step_moves_the_pre_activation_by_one_on_average(seed, whitening):
    X = inputs(seed)
    B = whitened_eigenbasis(second_moment(X), whitening)
    assert float((X @ B).square().mean()) == pytest.approx(1.0)


@given(st.integers(0, 1000), WHITENINGS)
def test_the_fresh_rotation_keeps_the_unit(seed, whitening):
    X = inputs(seed)
    rank = whitened_eigenbasis(second_moment(X), whitening).shape[1]  # a weak direction may be left out
    assert float((X @ basis(X, rank, whitening, seed)).square().mean()) == pytest.approx(1.0)


@given(st.integers(0, 1000))
def test_full_whitening_moves_all_directions_alike(seed):
    X = inputs(seed)
    response = X @ whitened_eigenbasis(second_moment(X), 1.0)
    one = torch.eye(response.shape[1], dtype=torch.float64)  # a weak direction may be left out
    torch.testing.assert_close(second_moment(response), one, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 1000))
def test_no_whitening_is_euclidean_in_weight_space(seed):
    B = whitened_eigenbasis(second_moment(inputs(seed)), 0.0)
    gram = B.T @ B
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(6, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), WHITENINGS)
def test_the_unit_does_not_depend_on_the_scale_of_the_inputs(seed, scale, whitening):
    X = scale * inputs(seed)
    assert float((X @ whitened_eigenbasis(second_moment(X), whitening)).square().mean()) == pytest.approx(1.0)


@given(st.integers(0, 1000), st.integers(1, 5), WHITENINGS)
def test_only_directions_of_the_inputs_are_proposed(seed, rank, whitening):
    X = inputs(seed, rank=rank)
    group, statistics = {"whitening": whitening, "span_floor": 0.01}, update_statistics(None, second_moment(X))
    assert SUBSPACE.rank(block(6), group, statistics) == rank
    B = basis(X, rank, whitening)
    outside = torch.linalg.svd(X).Vh[rank:]
    assert (outside @ B).abs().max() < 1e-6 * B.abs().max()


def test_a_pixel_that_is_always_zero_gets_no_weight():
    X = inputs(3)
    X[:, [1, 4]] = 0.0
    B = basis(X, 4)
    assert B[[1, 4]].abs().max() < 1e-12
    assert (B[[0, 2, 3, 5]].abs().max(1).values > 1e-3).all()


def test_rounding_noise_is_not_a_direction():
    X = torch.ones(10, 3, dtype=torch.float64)
    X[:, 1:] = 1e-5 * torch.randn(10, 2, dtype=torch.float64)
    assert whitened_eigenbasis(second_moment(X), 1.0).shape == (3, 1)


@pytest.mark.parametrize(("floor", "directions"), [(0.1, 2), (0.01, 3), (0.001, 4), (0.0, 5)])
def test_the_span_floor_says_which_directions_count(floor, directions):
    moment = torch.diag(torch.tensor([50.0, 1.0, 0.05, 0.005, 0.0004], dtype=torch.float64))
    statistics = update_statistics(None, moment)
    assert SUBSPACE.rank(block(5), {"whitening": 0.35, "span_floor": floor}, statistics) == directions


@pytest.mark.parametrize("whitening", [0.0, 0.35, 1.0])
def test_a_silent_layer_proposes_nothing(whitening):
    B = whitened_eigenbasis(torch.zeros(4, 4, dtype=torch.float64), whitening)
    assert torch.equal(B, torch.zeros(4, 1, dtype=torch.float64))


def test_the_rotation_is_fresh_each_step_and_a_function_of_the_draw():
    X = inputs(0)
    assert torch.equal(basis(X, 3, seed=1), basis(X, 3, seed=1))
    assert not torch.allclose(basis(X, 3, seed=1), basis(X, 3, seed=2))


def test_fewer_directions_are_a_frame_of_the_same_span():
    X = inputs(0)
    frame = torch.linalg.pinv(whitened_eigenbasis(second_moment(X), 0.35)) @ basis(X, 2)
    torch.testing.assert_close(frame.T @ frame, torch.eye(2, dtype=frame.dtype))


def test_a_site_that_was_never_observed_is_an_error():
    with pytest.raises(RuntimeError, match="never observed"):
        SUBSPACE.rank(block(2), {"whitening": 0.0, "span_floor": 0.01}, None)


def test_the_eigenbasis_is_refreshed_when_the_moment_has_moved():
    group, moment = {"whitening": 0.35, "span_floor": 0.01}, second_moment(inputs(0))
    statistics, refreshed = None, []
    for number, scale in enumerate([1.0, 1.0, 1.5, 1.5, 1.5, 1.5]):
        statistics = update_statistics(statistics, scale * moment)
        before = statistics.basis
        for _ in range(3):  # asking again within a step changes nothing
            SUBSPACE.rank(block(6), group, statistics)
            SUBSPACE.basis(block(6), 2, group, statistics, generator(0, number, "basis"))
        refreshed += [number] if statistics.basis is not before else []
    # The averages are 1, 1, 1.167, 1.25, 1.3 and 1.333 times the first: the last is 2.6 % above the one before.
    assert refreshed == [0, 2, 3, 4]


def test_inputs_that_stay_as_they_are_cost_one_eigendecomposition():
    statistics, bases = None, []
    for _ in range(50):
        statistics = update_statistics(statistics, second_moment(inputs(0)))
        SUBSPACE.rank(block(6), {"whitening": 0.35, "span_floor": 0.01}, statistics)
        bases.append(statistics.basis)
    assert all(basis is bases[0] for basis in bases)


def test_whether_a_basis_holds_is_looked_at_once_a_batch(monkeypatch):
    looked, statistics, group = [], None, {"whitening": 0.35, "span_floor": 0.01}
    monkeypatch.setattr(inputs_module, "own_units", lambda *_args, **_named: looked.append(1))
    for batch in range(3):
        X = inputs(batch)
        spreads = torch.stack([X.std(0), X.var(0)])
        statistics = update_statistics(statistics, second_moment(X), spreads)
        for step in range(4):
            assert SUBSPACE.rank(block(6), group, statistics) == 6
            SUBSPACE.basis(block(6), 3, group, statistics, generator(0, step, "b"))
        assert len(looked) == batch + 1


def test_a_silent_layer_gets_its_basis_when_it_speaks():
    group, silence = {"whitening": 0.35, "span_floor": 0.01}, torch.zeros(6, 6, dtype=torch.float64)
    statistics = update_statistics(None, silence)
    assert SUBSPACE.rank(block(6), group, statistics) == 1
    statistics = update_statistics(statistics, silence)
    assert SUBSPACE.rank(block(6), group, statistics) == 1
    statistics = update_statistics(statistics, second_moment(inputs(0)))
    assert SUBSPACE.rank(block(6), group, statistics) == 6


def test_a_basis_goes_on_where_it_was_stopped():
    group, whole, parts = {"whitening": 0.35, "span_floor": 0.01}, None, None
    for step in range(40):
        moment = second_moment(inputs(step))
        whole, parts = update_statistics(whole, moment), update_statistics(parts, moment)
        assert torch.equal(*(SUBSPACE.basis(block(6), 3, group, s, generator(0, step, "b")) for s in (whole, parts)))
        parts = InputStatistics(**vars(parts))


def test_the_number_of_threads_does_not_change_a_bit():
    inputs = torch.randn(512, 300, dtype=torch.float64)
    moment, bases = inputs.T @ inputs / len(inputs), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        bases.append(whitened_eigenbasis(moment, 0.35))
        assert torch.get_num_threads() == threads
    assert torch.equal(*bases)


def loudness(weight, bias, X):
    layer = torch.nn.Linear(2, len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    (site,) = find_blocks(layer, PolyStep(layer.parameters()).param_groups)
    X = torch.cat([X, torch.ones(len(X), 1)], 1).double()
    return SUBSPACE.loudness(site, update_statistics(None, second_moment(X)))


def test_rows_whose_pre_activations_are_far_too_large_are_probed_wider():
    X = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) * 2**0.5
    assert loudness([[1.0, 0.0], [2000.0, 0.0]], [0.0, 0.0], X) is None  # whose weights are large, and not its inputs
    rows = [[0.01, 0.0], [0.2, 0.0], [5.0, 0.0], [0.01, 0.0]]
    wider = loudness(rows, [0.0, 0.0, 0.0, -1e6], 100 * X)
    assert wider.factors.tolist() == pytest.approx([1.0, 8.0, 500.0, 1.0])  # a bias alone was set by somebody
    assert wider.outward[1].tolist() == pytest.approx([2000.0, 0.0, 0.0])


def test_a_bias_that_takes_up_an_offset_is_not_loud():
    X = torch.tensor([[100.0, 0.0], [102.0, 0.0], [101.0, 1.0], [101.0, -1.0]])
    wider = loudness([[1.0, 1.0], [1.0, 1.0]], [-101.0, 0.0], X)
    assert wider.factors.tolist() == pytest.approx([1.0, 101.0], rel=1e-2)


def test_loud_rows_come_back_and_do_not_grow():
    layer = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    (site,) = find_blocks(layer, PolyStep(layer.parameters()).param_groups)
    statistics = update_statistics(None, 1e4 * torch.eye(2, dtype=torch.float64))
    proposal = propose(site, statistics, torch.tensor([1.0, 16.0]), seed=0, step=0, rank=2)
    assert proposal.reach.tolist() == pytest.approx([5000.0, 5000.0])  # flat and loud: the wider of the two
    ahead = (proposal.directions @ site.join([layer.weight.detach()]).T).permute(2, 0, 1) > 0
    inward, outward = (
        move(proposal, (side / side.sum(-1, keepdim=True))) for side in (1.0 - ahead.float(), ahead.float())
    )
    assert float(inward.norm() / outward.norm()) > 100


def test_a_moment_that_lapack_gives_up_on_is_decomposed_all_the_same(monkeypatch):
    """As it does, rarely, with a layer most of whose inputs are always 0."""
    inputs = torch.zeros(64, 12, dtype=torch.float64)
    inputs[:, 3], inputs[:, 7] = torch.randn(64).double(), 2 * torch.randn(64).double()
    moment = inputs.T @ inputs / 64
    expected = whitened_eigenbasis(moment, 0.35)
    eigh, calls = torch.linalg.eigh, []

    def fails_once(matrix):
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_once)
    found = whitened_eigenbasis(moment, 0.35)
    assert len(calls) == 2
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-9, atol=1e-9)
