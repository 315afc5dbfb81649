"""What a build reports for machines."""

from __future__ import annotations

import json
import math
from pathlib import Path

from coin_export.code.design import default_code
from coin_export.encode.encoding import EncodeCost
from coin_export.pipeline.build import BuildReport
from tests.client.fake_triton import make_group


def test_what_diverged_is_null_in_valid_json() -> None:
    group = make_group(default_code(2, 1))
    coded = group.members[-1].name
    notes = {coded: {"start": "average", "trial_errors": {"0.003": math.inf, "0.001": 0.25}}}
    report = BuildReport(Path("models"), group, {}, {coded: EncodeCost(1.0, 2, 3, 4)}, notes, {"encode": 1.0})
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["encoding"][coded]["notes"]["trial_errors"] == {"0.003": None, "0.001": 0.25}
