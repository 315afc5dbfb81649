"""Quality of decoded answers for every erasure pattern, from the outputs of all members on the same inputs.

Knows nothing of where the outputs came from: ONNX Runtime at build, servers later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.code.decode import Array, decode
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Quality

MAX_PATTERNS = 500  # a manifest names each; large groups measure the smallest losses only

Outputs = Mapping[str, Array]  # by output name


@dataclass(frozen=True, eq=False)
class LabelledOutputs:
    """What all members answered to one original's labelled evaluation inputs.

    Attributes:
        members: outputs of the n members, in the order of the code.
        labels: integer class of each point, shape (points,).
    """

    members: Sequence[Outputs]
    labels: npt.NDArray[np.int64]


def decoded_outputs(code: LinearCode, members: Sequence[Outputs], erased: Sequence[int], wanted: int) -> Outputs:
    """Decode original ``wanted`` as a client would when exactly ``erased`` members are lost."""
    decoding = code.decoding([index for index in range(code.n) if index not in erased], [wanted])
    return {
        name: decode(decoding, [members[index][name] for index in decoding.sources], [members[wanted][name].shape[1:]])[
            0
        ]
        for name in members[0]
    }


def accuracy(outputs: Outputs, labels: npt.NDArray[Any]) -> float:
    """Return the share in % of points whose arg-max over the first output is their label.

    Further outputs have no labels.
    """
    first = next(iter(outputs.values()))
    return 100.0 * float(np.mean(first.reshape(len(labels), -1).argmax(axis=1) == labels))


def measure(
    code: LinearCode,
    names: Sequence[str],
    held_out: Sequence[Outputs],
    labelled: Mapping[str, LabelledOutputs],
) -> tuple[Quality, ...]:
    """Measure every erasure pattern and every original lost in it; of the ``MAX_PATTERNS`` smallest patterns.

    Args:
        code: the group's code.
        names: names of the n members.
        held_out: outputs of the n members on unlabeled inputs that no encoder has seen.
        labelled: by original, for those that have evaluation data.
    """
    return tuple(
        _quality(code, names, pattern, wanted, held_out, labelled.get(names[wanted]))
        for pattern in islice(code.erasure_patterns(), MAX_PATTERNS)
        for wanted in pattern
        if wanted < code.k
    )


def _quality(
    code: LinearCode,
    names: Sequence[str],
    pattern: Sequence[int],
    wanted: int,
    held_out: Sequence[Outputs],
    labelled: LabelledOutputs | None,
) -> Quality:
    decoded, direct = decoded_outputs(code, held_out, pattern, wanted), held_out[wanted]
    gain = code.decoding(code.left_by(pattern), [wanted]).noise_gain[0]
    degraded = None
    if labelled is not None:
        degraded = accuracy(decoded_outputs(code, labelled.members, pattern, wanted), labelled.labels)
    return Quality(
        erased=tuple(names[index] for index in pattern),
        decoded=names[wanted],
        noise_gain=gain,
        relative_error=_relative_error(decoded, direct),
        agreement=_agreement(decoded, direct),
        degraded_accuracy=degraded,
    )


def _relative_error(decoded: Outputs, direct: Outputs) -> float:
    """Root mean square of the difference over that of the direct outputs, all outputs together."""
    difference = sum(float(np.square(decoded[name] - direct[name], dtype=np.float64).sum()) for name in direct)
    size = sum(float(np.square(direct[name], dtype=np.float64).sum()) for name in direct)
    return float(np.sqrt(difference / size)) if size > 0 else float(difference > 0)


def _agreement(decoded: Outputs, direct: Outputs) -> float | None:
    name = next(iter(direct))
    if direct[name].ndim not in (2, 3) or direct[name].shape[-1] == 1:
        return None
    return 100.0 * float(np.mean(decoded[name].argmax(axis=-1) == direct[name].argmax(axis=-1)))
