"""Decoding random outputs, of every size and precision, against the full system solved in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from coin_export.code.decode import decode
from coin_export.code.linear import LinearCode

Array = npt.NDArray[Any]


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCode, list[int], list[int], list[Array]]:
    """A code, what arrived, what is wanted of it, and all models' outputs (coded ones need not be exact)."""
    k = draw(st.integers(2, 6))
    coefficients = st.lists(st.floats(0.05, 1.0), min_size=k, max_size=k)
    code = LinearCode.from_rows(draw(st.lists(coefficients, min_size=1, max_size=3)))
    arrived = draw(st.lists(st.integers(0, code.n - 1), min_size=1, unique=True))
    wanted = draw(st.lists(st.integers(0, k - 1), min_size=1, unique=True))
    dtypes: Any = [np.float16, np.float32, np.float64]
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4))
    largest = np.log10(float(np.finfo(dtype).max)) - 0.5
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = draw(st.lists(st.floats(-3.0, largest) | st.just(0.0), min_size=code.n, max_size=code.n))
    outputs: list[Array] = [(random.uniform(-1, 1, size=shape) * 10**scale).astype(dtype) for scale in scales]
    return code, arrived, wanted, outputs


@given(cases())
def test_decoding_equals_the_full_system_in_double_precision(
    case: tuple[LinearCode, list[int], list[int], list[Array]],
) -> None:
    code, arrived, wanted, outputs = case
    assume(code.decodable(arrived, wanted))
    decoding = code.decoding(arrived, wanted)
    assert decoding.wanted == tuple(wanted) and set(decoding.sources) <= set(arrived)
    found = decode(decoding, [outputs[row] for row in decoding.sources])
    # The weights do recover each wanted original, whatever the outputs are.
    recovered = decoding.weights @ code.generator[list(decoding.sources)]
    np.testing.assert_allclose(recovered, np.eye(code.k)[wanted], atol=1e-7)
    for weights, array in zip(decoding.weights, found, strict=True):
        assert array.dtype == outputs[0].dtype and array.shape == outputs[0].shape
        terms = [w * outputs[row].astype(np.float64) for w, row in zip(weights, decoding.sources, strict=True)]
        check_sum(array, terms)


def check_sum(array: Array, terms: list[Array]) -> None:
    """Rounded once to the array's own precision, and by single precision at least on the way there."""
    limits = np.finfo(array.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        truth, size = sum(terms), sum(np.abs(term) for term in terms)
        on_the_way = np.finfo(np.result_type(array.dtype, np.float32))
        bound = float(limits.eps) * np.abs(truth) + 4 * len(terms) * float(on_the_way.eps) * size
        bound = bound + float(limits.smallest_subnormal)
        error = np.abs(array.astype(np.float64) - truth)
    # Near the largest number some terms of a sum may not fit although the sum would; it is infinite then, or NaN.
    too_large = ~np.isfinite(size) | (size >= 0.99 * float(limits.max))
    assert ((error <= bound) | too_large).all(), (array, truth)


@given(cases())
def test_what_arrived_itself_is_handed_on_as_it_is(case: tuple[LinearCode, list[int], list[int], list[Array]]) -> None:
    code, arrived, wanted, outputs = case
    assume(code.decodable(arrived, wanted))
    decoding = code.decoding(arrived, wanted)
    found = decode(decoding, [outputs[row] for row in decoding.sources])
    for row, array in zip(decoding.wanted, found, strict=True):
        assert row not in arrived or array is outputs[row]


@pytest.mark.parametrize("classes", [None, [(2,), (3,)]])
def test_half_precision_is_not_lost_between_terms(classes: list[tuple[int, ...]] | None) -> None:
    """Products beyond the largest half-precision number, which cancel in the sum."""
    code = LinearCode.from_rows([[1, 15]])
    decoding = code.decoding([1, 2])
    first, second = np.full((1, 3), 100.0), np.full((1, 3), 60_000.0)
    coded = (first + 15 * second) / 16
    outputs: list[Array] = [second.astype(np.float16), coded.astype(np.float16)]
    terms = [weight * output.astype(np.float64) for weight, output in zip(decoding.weights[0], outputs, strict=True)]
    found = decode(decoding, outputs, classes)[0]
    truth = np.sum(terms, axis=0)
    np.testing.assert_allclose(found, truth[:, : found.shape[1]], rtol=1e-3)


def test_what_does_not_fit_becomes_infinite_without_a_warning() -> None:
    decoding = LinearCode.from_rows([[1, 1]]).decoding([1, 2])
    outputs: list[Array] = [np.full((1, 2), -60_000, np.float16), np.full((1, 2), 60_000, np.float16)]
    assert np.isposinf(decode(decoding, outputs)[0]).all()
    assert np.isposinf(decode(decoding, outputs, [(1,), (2,)])[0]).all()
