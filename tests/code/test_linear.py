from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.linalg import lstsq, matrix_rank

from coin_export.code.decode import Array, decode
from coin_export.code.design import default_code, worst_gain
from coin_export.code.linear import LinearCode, check_all_protected
from coin_export.errors import CodeError

coefficients = st.floats(0.05, 1.0)


@st.composite
def codes(draw: st.DrawFn, replicas: bool = True) -> LinearCode:
    """Rows of positive coefficients, rows with zeros among them, and replicas."""
    k = draw(st.integers(2, 5))
    m = draw(st.integers(1, 3))
    dense = st.lists(coefficients, min_size=k, max_size=k)
    sparse = st.lists(coefficients | st.just(0.0), min_size=k, max_size=k).filter(lambda row: row.count(0.0) < k - 1)
    unit = st.integers(0, k - 1).map(lambda index: unit_row(k, index))
    return LinearCode.from_rows(draw(st.lists(dense | sparse | (unit if replicas else dense), min_size=m, max_size=m)))


def unit_row(k: int, index: int) -> list[float]:
    return [float(column == index) for column in range(k)]


@st.composite
def codes_with_arrivals(draw: st.DrawFn, replicas: bool = True) -> tuple[LinearCode, list[int]]:
    code = draw(codes(replicas))
    return code, sorted(draw(st.sets(st.integers(0, code.n - 1))))


def in_row_space(code: LinearCode, arrived: list[int], original: int) -> bool:
    """The slow obvious test: appending the wanted unit vector does not raise the rank."""
    rows = code.generator[arrived].reshape(-1, code.k)
    with_wanted = np.vstack([rows, np.eye(code.k)[original]])
    return len(arrived) > 0 and bool(matrix_rank(with_wanted, tol=1e-9) == matrix_rank(rows, tol=1e-9))


@given(codes_with_arrivals())
def test_decodable_means_in_the_row_space_of_what_arrived(case: tuple[LinearCode, list[int]]) -> None:
    code, arrived = case
    for original in range(code.k):
        assert code.decodable(arrived, [original]) == in_row_space(code, arrived, original)


@given(codes(), st.data())
def test_noise_gains_of_many_sets_are_those_of_one_decoding_after_the_other(
    code: LinearCode, data: st.DataObject
) -> None:
    sets = data.draw(st.lists(st.frozensets(st.integers(0, code.n - 1)), min_size=1, max_size=8))
    wanted = data.draw(st.sampled_from([None, [0], [tuple(1 / code.k for _ in range(code.k))]]))
    gains = code.noise_gains(sets, wanted)
    for arrived, gain in zip(sets, gains, strict=True):
        if code.decodable(arrived, wanted):
            assert gain == pytest.approx(max(code.decoding(arrived, wanted).noise_gain), rel=1e-6, abs=1e-9)
        else:
            assert gain == np.inf


@given(codes_with_arrivals(), st.integers(0, 2**32 - 1))
def test_decoding_returns_every_original_exactly(case: tuple[LinearCode, list[int]], seed: int) -> None:
    code, arrived = case
    if not code.decodable(arrived):
        with pytest.raises(CodeError, match="do not determine"):
            code.decoding(arrived)
        return
    truth = np.random.default_rng(seed).normal(size=(code.k, 4, 3))
    outputs = np.einsum("nk,kbc->nbc", code.generator, truth)
    decoding = code.decoding(arrived)
    scale = 1.0 + float(np.abs(decoding.weights).max())
    decoded = decode(decoding, [outputs[index] for index in decoding.sources])
    np.testing.assert_allclose(np.stack(decoded), truth, atol=1e-10 * scale)


@given(codes_with_arrivals(replicas=False))
def test_decoding_weights_have_the_least_noise_gain(case: tuple[LinearCode, list[int]]) -> None:
    """Against the minimum-norm solution of the system that the coded rows have to satisfy."""
    code, arrived = case
    if not code.decodable(arrived):
        return
    decoding = code.decoding(arrived)
    unknown = [index for index in range(code.k) if index not in arrived]
    coded = [index for index in arrived if index >= code.k]
    for row, original in enumerate(decoding.originals):
        if original in arrived:
            assert decoding.noise_gain[row] == 0.0
            continue
        target = np.eye(len(unknown))[unknown.index(original)]
        least, *_ = lstsq(code.generator[coded][:, unknown].T, target, rcond=None)
        assert decoding.noise_gain[row] == pytest.approx(float(np.linalg.norm(least)), rel=1e-6)


@given(codes(), st.sampled_from([np.float16, np.float32, np.float64]))
def test_decoding_keeps_the_dtype_and_hands_direct_answers_through(code: LinearCode, dtype: type) -> None:
    outputs: list[Array] = [np.full((2, 3), index, dtype=dtype) for index in range(code.n)]
    if not code.decodable(range(1, code.n)):
        return
    decoding = code.decoding(range(1, code.n))
    decoded = decode(decoding, [outputs[index] for index in decoding.sources])
    assert all(array.dtype == dtype and array.shape == (2, 3) for array in decoded)
    for original in range(1, code.k):
        assert decoded[original] is outputs[original]


@given(codes_with_arrivals(), st.data())
def test_decoding_unequal_classes_is_decoding_padded_outputs(
    case: tuple[LinearCode, list[int]], data: st.DataObject
) -> None:
    """What an output lacks counts as zero; what is decoded has the wanted original's own classes."""
    code, arrived = case
    classes = [*data.draw(st.lists(st.integers(1, 4), min_size=code.k, max_size=code.k)), *[5] * code.m]
    if not code.decodable(arrived):
        return
    decoding = code.decoding(arrived)
    random = np.random.default_rng(0)
    outputs = [random.normal(size=(3, classes[index], 2)) for index in decoding.sources]
    padded = [np.pad(output, ((0, 0), (0, 5 - output.shape[1]), (0, 0))) for output in outputs]
    found = decode(decoding, outputs, [(classes[index], -1) for index in decoding.originals])
    for index, cut, whole in zip(decoding.originals, found, decode(decoding, padded), strict=True):
        assert cut.shape == (3, classes[index], 2)
        np.testing.assert_allclose(cut, whole[:, : classes[index]])


@given(codes_with_arrivals(), st.data())
def test_a_combination_is_decoded_whenever_what_arrived_determines_it(
    case: tuple[LinearCode, list[int]], data: st.DataObject
) -> None:
    code, arrived = case
    row = data.draw(st.lists(st.floats(0.0, 1.0), min_size=code.k, max_size=code.k) | st.sampled_from(code.parities))
    combination = tuple(row)
    if code.decodable(arrived):
        assert code.decodable(arrived, [combination])
    if not code.decodable(arrived, [combination]):
        assert combination not in [code.parities[index - code.k] for index in arrived if index >= code.k]
        return
    decoding = code.decoding(arrived, [combination])
    truth = np.random.default_rng(0).normal(size=(code.k, 4))
    outputs = code.generator @ truth
    scale = 1.0 + float(np.abs(decoding.weights).sum())
    (found,) = decode(decoding, [outputs[index] for index in decoding.sources]) if decoding.sources else [0.0]
    np.testing.assert_allclose(found, np.asarray(combination) @ truth, atol=1e-7 * scale)


def test_a_combination_has_a_coefficient_for_each_original() -> None:
    with pytest.raises(CodeError, match="a combination has 3 coefficients; the code has 2 originals"):
        default_code(2, 1).decodable([0, 1], [(1.0, 0.0, 0.0)])


def test_the_combination_of_unequal_classes_is_that_of_padded_outputs() -> None:
    decoding = LinearCode.from_rows([[1, 1]]).decoding([0, 1], [(0.5, 0.5)])
    narrow, wide = np.ones((2, 3)), np.ones((2, 5))
    (found,) = decode(decoding, [narrow, wide], [(5,)])
    np.testing.assert_array_equal(found, [[1, 1, 1, 0.5, 0.5]] * 2)


def test_one_lost_of_two_is_the_formula_of_the_paper() -> None:
    """f_i = (f_c - sum_{j != i} beta_j f_j) / beta_i, so the coding error is amplified by 1 / beta_i."""
    decoding = LinearCode.from_rows([[1, 3]]).decoding([1, 2])
    assert decoding.sources == (1, 2)
    np.testing.assert_allclose(decoding.weights, [[-3.0, 4.0], [1.0, 0.0]])
    assert decoding.noise_gain == pytest.approx((4.0, 0.0))


def test_replication_is_the_code_of_unit_rows() -> None:
    code = LinearCode.from_rows([unit_row(3, 0), unit_row(3, 1), unit_row(3, 2)])
    assert [code.replicated(row) for row in (3, 4, 5)] == [0, 1, 2]
    assert code.survives_any(1) and not code.survives_any(2)
    assert code.decodable([3, 4, 2]) and not code.decodable([0, 3, 2])
    decoding = code.decoding([3, 4, 2])
    assert decoding.sources == (2, 3, 4) and decoding.noise_gain == (1.0, 1.0, 0.0)
    outputs: list[Array] = [np.full(4, index, np.float32) for index in decoding.sources]
    assert all(array is outputs[source] for array, source in zip(decode(decoding, outputs), (1, 2, 0), strict=True))


@given(codes(), st.integers(0, 4))
def test_a_replica_is_preferred_to_any_mixture(code: LinearCode, index: int) -> None:
    lost = index % code.k
    code = LinearCode((*code.parities, tuple(unit_row(code.k, lost))))
    decoding = code.decoding([row for row in range(code.n) if row != lost], [lost])
    assert len(decoding.sources) == 1 and code.replicated(decoding.sources[0]) == lost
    assert decoding.weights.tolist() == [[1.0]] and decoding.noise_gain == (1.0,)
    assert code.decoding(range(code.n), [lost]).sources == (lost,)


@given(codes())
def test_a_code_survives_one_loss_exactly_if_every_original_has_a_coefficient(code: LinearCode) -> None:
    protected = all(any(row[original] > 0 for row in code.parities) for original in range(code.k))
    assert code.survives_any(1) == protected


def test_a_model_with_coefficient_zero_is_not_protected() -> None:
    code = LinearCode.from_rows([[1, 1, 0]])
    assert code.decodable([1, 3], [0]) and not code.decodable([0, 1, 3], [2])
    assert list(code.erasure_patterns()) == [(0,), (1,)] and not code.survives_any(1)
    check_all_protected([0.5, 0.5], "beta")
    with pytest.raises(CodeError, match="beta: coefficient 1 is 0, so original 1 would not be protected"):
        check_all_protected([1.0, 0.0], "beta")


def test_a_wanted_subset_needs_only_what_determines_it() -> None:
    code = LinearCode.from_rows([[1, 1, 1]])
    assert code.decodable([0], [0]) and not code.decodable([0, 3], [1])
    assert code.decodable([0, 2, 3], [1]) and not code.decodable([], [0])


def test_erasure_patterns_are_the_losses_that_can_be_made_good() -> None:
    singles, pairs = [(0,), (1,), (2,)], [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)]
    assert list(default_code(3, 2).erasure_patterns()) == [*singles, *pairs]
    degenerate = LinearCode.from_rows([[1, 1, 1], [1, 1, 1]])
    one_coded_lost = [(original, coded) for original in range(3) for coded in (3, 4)]
    assert list(degenerate.erasure_patterns()) == [*singles, *one_coded_lost]
    assert not degenerate.survives_any(2) and degenerate.survives_any(1)


@pytest.mark.parametrize(("k", "m"), [(2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 4), (8, 2), (16, 2), (16, 4)])
def test_default_code_survives_any_m_erasures(k: int, m: int) -> None:
    code = default_code(k, m)
    assert (code.k, code.m, code.n) == (k, m, k + m)
    assert code.survives_any(m)
    for lost in combinations(range(code.n), m):
        rows = code.generator[[index for index in range(code.n) if index not in lost]]
        assert np.linalg.cond(rows) < (1e4 if m < 4 or k < 16 else 1e6)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_default_code_beats_random_coefficients_where_coded_models_err_alike(k: int, m: int, seed: int) -> None:
    random = LinearCode.from_rows(np.random.default_rng(seed).dirichlet(np.ones(k), size=m).tolist())
    assume(random.survives_any(m))
    assert worst_deviation(default_code(k, m)) <= worst_deviation(random) * 1.01


def test_what_cancels_when_two_coded_models_err_alike_goes_to_the_losses_that_leave_one() -> None:
    """Of these two codes, the first has the less noise gain, but leaves a coefficient of 0.19."""
    least_noise_gain = LinearCode.from_rows([[0.463, 0.189, 0.348], [0.189, 0.463, 0.348]])
    code = default_code(3, 2)
    assert least_noise_gain.worst_noise_gain() < code.worst_noise_gain()
    assert worst_deviation(code) < 0.9 * worst_deviation(least_noise_gain)
    assert np.min(code.parities) > 0.21


def worst_deviation(code: LinearCode, correlation: float = 0.95) -> float:
    """The largest standard deviation of a decoded output, where each coded model's is one."""
    covariance = (1 - correlation) * np.eye(code.m) + correlation
    deviations = []
    for lost in combinations(range(code.n), code.m):
        decoding = code.decoding(code.left_by(lost))
        weights = np.zeros((code.k, code.n))
        weights[:, decoding.sources] = decoding.weights
        on_coded = weights[:, code.k :]
        deviations.append(np.sqrt(np.einsum("kr,rs,ks->k", on_coded, covariance, on_coded)).max())
    return float(max(deviations))


@settings(max_examples=6)
@given(st.integers(2, 4), st.integers(1, 3), st.data())
def test_protecting_a_model_lowers_its_noise_gain(k: int, m: int, data: st.DataObject) -> None:
    chosen, weight = data.draw(st.integers(0, k - 1)), data.draw(st.floats(2.0, 4.0))

    def gain(code: LinearCode) -> float:
        lost = [set(lost) for lost in combinations(range(code.n), m) if chosen in lost]
        kept = [[index for index in range(code.n) if index not in some] for some in lost]
        return max(code.decoding(arrived, [chosen]).noise_gain[0] for arrived in kept)

    protected = default_code(k, m, [weight if index == chosen else 1.0 for index in range(k)])
    assert protected.survives_any(m)
    assert gain(protected) < gain(default_code(k, m))


@given(codes())
def test_the_gain_by_minors_is_the_gain_by_decoding(code: LinearCode) -> None:
    assume(code.worst_condition() < 1e6)
    assert worst_gain(np.asarray(code.parities)) == pytest.approx(code.worst_noise_gain(), rel=1e-6)
    weights = [1.0 + original for original in range(code.k)]
    weighted = max(
        weights[original] * code.decoding([i for i in range(code.n) if i not in lost], [original]).noise_gain[0]
        for lost in combinations(range(code.n), code.m)
        for original in range(code.k)
    )
    assert worst_gain(np.asarray(code.parities), weights) == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize("protect", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_protect_nothing_are_refused(protect: list[float]) -> None:
    with pytest.raises(CodeError, match="a positive number for each of 2 models"):
        default_code(2, 1, protect)


def test_the_worst_condition_is_that_of_some_k_rows() -> None:
    code = default_code(3, 2)
    conditions = [np.linalg.cond(code.generator[list(rows)]) for rows in combinations(range(5), 3)]
    assert code.worst_condition() == pytest.approx(max(conditions))


def test_default_single_parity_is_the_mean() -> None:
    assert default_code(4, 1).parities == ((0.25, 0.25, 0.25, 0.25),)


def test_worst_noise_gain_is_that_of_the_worst_loss() -> None:
    code = default_code(3, 2)
    assert code.worst_noise_gain() == pytest.approx(worst_gain(np.asarray(code.parities)))
    assert LinearCode.from_rows([[1, 1], [1, 1]]).worst_noise_gain() == float("inf")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one coded model"),
        ([[1.0]], "at least two originals"),
        ([[1.0, 1.0], [1.0, 1.0, 1.0]], "differ in length"),
        ([[0.5, 0.5], [0.0, 0.0]], r"row 1 .* all zero"),
        ([[0.5, 0.5], [1.5, -0.5]], r"row 1 .* coefficient 1 is -0.5"),
        ([[1.0, float("nan")]], "finite"),
        ([[1.0, float("inf")]], "finite"),
    ],
)
def test_unusable_coefficients_are_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(CodeError, match=message):
        LinearCode.from_rows(rows)


def test_rows_that_do_not_sum_to_one_are_refused_by_the_class_and_normalised_by_the_constructor() -> None:
    with pytest.raises(CodeError, match="divide it by its sum"):
        LinearCode(((1.0, 1.0),))
    assert LinearCode.from_rows([[2, 6]]).parities == ((0.25, 0.75),)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (0, 1), (2, 0)])
def test_default_code_refuses_senseless_sizes(k: int, m: int) -> None:
    with pytest.raises(CodeError, match="k >= 2"):
        default_code(k, m)


def test_originals_that_do_not_exist_are_refused() -> None:
    with pytest.raises(CodeError, match="original 2 does not exist"):
        default_code(2, 1).decodable([0, 1], [2])
