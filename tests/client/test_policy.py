import math

import pytest

from coin_export.client import AfterDelay, AfterGrace, AsSoonAsDecodable, AtDeadline, AtOnce, Policy
from coin_export.errors import UserError


def test_times_follow_from_the_policy() -> None:
    assert AtOnce().coded_at(3.0) == 3.0
    assert AfterDelay(0.5).coded_at(3.0) == 3.5
    assert AsSoonAsDecodable().decode_at(3.0, 4.0) == 4.0
    assert AtDeadline().decode_at(3.0, 4.0) == math.inf
    assert AfterGrace(0.1, 0.5).decode_at(3.0, 4.0) == 4.5
    assert AfterGrace(0.1, 0.5).decode_at(3.0, 3.01) == pytest.approx(3.11)


def test_the_default_asks_at_once_and_decodes_after_a_grace() -> None:
    assert Policy() == Policy(AtOnce(), AfterGrace(at_least_s=0.002, share=1.0))


@pytest.mark.parametrize("seconds", [-0.1, math.inf, math.nan])
def test_durations_are_finite_and_not_negative(seconds: float) -> None:
    with pytest.raises(UserError, match=r"AfterDelay\.seconds"):
        AfterDelay(seconds)
    with pytest.raises(UserError, match=r"AfterGrace\.at_least_s"):
        AfterGrace(seconds)
    with pytest.raises(UserError, match=r"AfterGrace\.share"):
        AfterGrace(0.1, seconds)
