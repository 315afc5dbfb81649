import pytest

from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from coin_export.code.warning import NOISE_GAIN_BOUND, noise_warning


@pytest.mark.parametrize(("k", "m"), [(2, 1), (100, 1), (3, 2), (8, 2), (4, 3)])
def test_a_code_within_the_bound_is_not_warned_of(k: int, m: int) -> None:
    code = default_code(k, m)
    assert code.worst_noise_gain() <= NOISE_GAIN_BOUND + 1e-9
    assert noise_warning(code, [f"model_{index}" for index in range(k + m)]) is None


def test_a_large_group_with_several_coded_models_is_warned_of() -> None:
    warning = noise_warning(default_code(8, 3), [f"model_{index}" for index in range(11)])
    assert warning is not None and "fewer coded models, smaller groups" in warning


def test_a_small_coefficient_is_warned_of_with_the_model_that_it_protects_badly() -> None:
    warning = noise_warning(LinearCode.from_rows([[1, 499]]), ["digits", "fashion", "coded"])
    assert warning is not None
    assert "with 'digits' lost, decoding 'digits' multiplies the coding error by 500" in warning
    assert "smaller groups or other coefficients" in warning and "fewer coded models" not in warning


def test_the_worst_of_all_losses_is_named() -> None:
    code = LinearCode.from_rows([[1.0, 1.01, 5.0], [5.0, 5.0, 1.0]])
    assert code.worst_loss.lost == (0, 1) and code.worst_loss.noise_gain == code.worst_noise_gain() > NOISE_GAIN_BOUND
    warning = noise_warning(code, ["a", "b", "c", "coded_0", "coded_1"])
    assert warning is not None and warning.startswith("with 'a' and 'b' lost, decoding ")
    assert "fewer coded models, smaller groups" in warning


def test_what_cannot_be_decoded_at_all_is_no_matter_of_noise() -> None:
    code = LinearCode.from_rows([[1, 1], [1, 1]])
    assert code.worst_loss.original is None and code.worst_noise_gain() == float("inf")
    assert noise_warning(code, ["a", "b", "coded_0", "coded_1"]) is None
