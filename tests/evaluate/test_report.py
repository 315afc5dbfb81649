import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from coin_export.code.manifest import Group, Member, Quality, Tensor
from coin_export.evaluate.report import group_json, group_tables, normalized_accuracy

GROUP = Group(
    name="digits",
    encoder="coin",
    code_space="logits",
    inputs=(Tensor("image", "FP32", (1, 28, 28)),),
    outputs=(Tensor("logits", "FP32", (10,)),),
    members=(
        Member("a", "original", (1.0, 0.0), "sha256:aa", 80.0),
        Member("b", "original", (0.0, 1.0), "sha256:bb"),
        Member("digits_coded_0", "coded", (0.25, 0.75), "sha256:cc"),
    ),
    quality=(Quality(("a",), "a", 4.0, 0.125, 97.5, 60.0), Quality(("b",), "b", 4 / 3, 0.2, 91.0)),
)


def test_the_tables_tell_the_code_and_every_erasure_pattern() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(group_tables(GROUP))
    text = console.export_text()
    assert "noise gain at most 4.00" in text
    for expected in ("k = 2, m = 1", "0.250  0.750", "image FP32 [1, 28, 28]", "97.5", "60.0", "75.0", "1.33"):
        assert expected in text


def test_the_json_is_plain_and_whole() -> None:
    content = json.loads(json.dumps(group_json(GROUP)))
    assert content["survives_any_erasures"] == 1
    assert content["worst_noise_gain"] == 4.0
    assert content["worst_condition"] == pytest.approx(float(np.linalg.cond(np.array([[0, 1], [0.25, 0.75]]))))
    assert content["generation"] == GROUP.generation
    assert [member["name"] for member in content["members"]] == ["a", "b", "digits_coded_0"]
    assert content["quality"][0]["noise_gain"] == 4.0


def test_a_high_noise_gain_is_warned_of_in_both() -> None:
    member = replace(GROUP.members[2], row=(0.002, 0.998))
    group = replace(GROUP, members=(*GROUP.members[:2], member))
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(group_tables(group))
    warning = "with 'a' lost, decoding 'a' multiplies the coding error by 500"
    assert f"Warning: {warning}" in console.export_text()
    assert group_json(group)["warning"].startswith(warning)
    assert group_json(GROUP)["warning"] is None


def test_normalized_accuracy_is_degraded_over_original_where_both_were_measured() -> None:
    assert normalized_accuracy(GROUP.quality[0], 80.0) == pytest.approx(75.0)
    assert normalized_accuracy(GROUP.quality[0], None) is None
    assert normalized_accuracy(GROUP.quality[1], 80.0) is None
