import numpy as np
import numpy.typing as npt
import pytest

from coin_export.code.linear import LinearCode
from coin_export.evaluate.accuracy import LabelledOutputs, accuracy, decoded_outputs, measure

NAMES = ["a", "b", "c", "coded"]
CODE = LinearCode.from_rows([[1, 1, 2]])
RANDOM = np.random.default_rng(0)
ORIGINALS = RANDOM.normal(size=(3, 50, 4))


def coded(noise: float) -> npt.NDArray[np.float64]:
    """The coded model's answers: the exact combination plus an error of the given size."""
    exact: npt.NDArray[np.float64] = np.einsum("k,kpc->pc", CODE.generator[3], ORIGINALS)
    exact += noise * np.random.default_rng(1).normal(size=exact.shape)
    return exact


def members(noise: float) -> list[dict[str, npt.NDArray[np.float64]]]:
    return [{"logits": array} for array in [*ORIGINALS, coded(noise)]]


def test_an_exact_coded_model_decodes_exactly() -> None:
    for record in measure(CODE, NAMES, members(0.0), {}):
        assert record.relative_error == pytest.approx(0.0, abs=1e-12)
        assert record.agreement == 100.0
        assert record.degraded_accuracy is None
    np.testing.assert_allclose(decoded_outputs(CODE, members(0.0), [1], 1)["logits"], ORIGINALS[1])


def test_the_coding_error_is_amplified_by_the_noise_gain() -> None:
    quality = measure(CODE, NAMES, members(0.1), {})
    assert [(record.erased, record.decoded) for record in quality] == [(("a",), "a"), (("b",), "b"), (("c",), "c")]
    assert [record.noise_gain for record in quality] == pytest.approx([4.0, 4.0, 2.0])
    error = coded(0.1) - coded(0.0)
    for record, original in zip(quality, ORIGINALS, strict=True):
        expected = record.noise_gain * np.linalg.norm(error) / np.linalg.norm(original)
        assert record.relative_error == pytest.approx(expected)


def test_degraded_accuracy_is_that_of_the_decoded_answers_on_the_originals_own_data() -> None:
    labels = ORIGINALS[0].argmax(axis=1)
    labelled = {"a": LabelledOutputs(members(0.2), labels)}
    first, *others = measure(CODE, NAMES, members(0.2), labelled)
    decoded = decoded_outputs(CODE, members(0.2), [0], 0)["logits"]
    assert first.degraded_accuracy is not None and 0 < first.degraded_accuracy < 100
    assert first.degraded_accuracy == pytest.approx(100 * np.mean(decoded.argmax(axis=1) == labels))
    assert first.degraded_accuracy == pytest.approx(first.agreement)
    assert all(record.degraded_accuracy is None for record in others)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3, 3)])
def test_what_names_no_class_has_no_agreement(shape: tuple[int, ...]) -> None:
    values = [{"y": RANDOM.normal(size=(5, *shape))} for _ in NAMES]
    assert all(record.agreement is None for record in measure(CODE, NAMES, values, {}))


def test_agreement_is_that_of_all_positions() -> None:
    """One of eight positions names another class, so one point in two would."""
    own = [{"y": np.zeros((2, 4, 3))} for _ in "ab"]
    own[0]["y"][..., 0] = 2.0
    off = np.zeros((2, 4, 3))
    off[..., 0] = 1.0
    off[0, 0, 1] = 3.0
    first, _ = measure(LinearCode.from_rows([[1, 1]]), ["a", "b", "coded"], [*own, {"y": off}], {})
    assert first.agreement == pytest.approx(87.5)


def test_accuracy_counts_the_first_output_only() -> None:
    outputs = {"logits": np.eye(3)[[0, 1, 1, 2]], "other": np.zeros((4, 3))}
    assert accuracy(outputs, np.array([0, 1, 2, 2])) == 75.0


def test_lost_coded_models_are_measured_too() -> None:
    """The fewer coded models are left, the worse a decoded answer; a client finds what fits what it has."""
    code = LinearCode.from_rows([[1, 1, 2], [3, 1, 1]])
    exact = np.einsum("nk,kpc->npc", code.generator, ORIGINALS)
    noise = np.zeros_like(exact)
    noise[3:] = np.random.default_rng(2).normal(scale=0.1, size=noise[3:].shape)
    quality = measure(code, ["a", "b", "c", "p", "q"], [{"logits": array} for array in exact + noise], {})
    found = {record.erased: record for record in quality if record.decoded == "a"}
    assert set(found) == {("a",), ("a", "b"), ("a", "c"), ("a", "p"), ("a", "q")}
    assert found["a", "q"].noise_gain == pytest.approx(4.0) and found["a", "p"].noise_gain == pytest.approx(5 / 3)
    assert found["a",].noise_gain < found["a", "p"].noise_gain
    assert found["a", "q"].relative_error > found["a", "p"].relative_error
