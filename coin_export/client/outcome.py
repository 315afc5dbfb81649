"""How a request ends for its caller: the answers, or an error with all that is known about why there are none."""

from __future__ import annotations

import time
from collections.abc import Sequence

from coin_export.client.answer import Answer, Answers, Source
from coin_export.client.fanout import Fanout
from coin_export.client.gather import Cause, Finish
from coin_export.code.decode import decode
from coin_export.code.linear import Decoding
from coin_export.code.manifest import Group
from coin_export.errors import UndecodableError

_CURE = {
    Cause.DEADLINE: "allow more time, or see why these servers are slow",
    Cause.TOO_FEW: "see to these servers",
}


def answers(fanout: Fanout, finish: Finish) -> Answers:
    """Return the direct answers as they came, and decode the others."""
    direct = [_direct(fanout, row) for row in finish.direct]
    if finish.decoding is None:
        return Answers({answer.model: answer for answer in direct})
    found = dict(zip(finish.direct, direct, strict=True)) | _decoded(fanout, finish.decoding, finish.erased)
    return Answers({answer.model: answer for _, answer in sorted(found.items())})


def mean(fanout: Fanout, finish: Finish) -> Answers:
    """Return the combination that was asked for under the group's name; direct if no coded answer took part."""
    group, decoding = fanout.group, finish.decoding
    assert decoding is not None
    began = time.perf_counter()
    outputs = {
        tensor.name: decode(decoding, fanout.outputs(decoding.sources, tensor.name), [tensor.shape])[0]
        for tensor in group.outputs
    }
    (noise_gain,) = decoding.noise_gain
    if noise_gain:
        fanout.decode_s = time.perf_counter() - began
    answer = Answer(
        group.name,
        outputs,
        Source.DECODED if noise_gain else Source.DIRECT,
        noise_gain=noise_gain,
        quality=None,
        latency_s=fanout.elapsed_s,
        request_id=fanout.request.options.request_id,
    )
    return Answers({group.name: answer})


def undecodable(last: Fanout, cause: Cause) -> UndecodableError:
    """Make the error: it hands over what arrived, and says of every other member why it is missing.

    Args:
        last: the last attempt.
        cause: why it was given up.
    """
    group, elapsed_s = last.group, last.elapsed_s
    arrived = {group.members[row].name: _direct(last, row) for row in sorted(last.replies)}
    failures = {
        member.name: last.failures.get(row) or last.silence.get(row, "it was not asked")
        for row, member in enumerate(group.members)
        if row not in last.replies
    }
    message = (
        f"group {group.name!r}: {cause.value} after {1e3 * elapsed_s:.0f} ms; "
        f"arrived: {', '.join(arrived) or 'nothing'}; "
        f"missing: {'; '.join(f'{name}: {reason}' for name, reason in failures.items())}; {_CURE[cause]}"
    )
    return UndecodableError(message, arrived=arrived, failures=failures, elapsed_s=elapsed_s)


def _direct(fanout: Fanout, row: int) -> Answer:
    outputs, version = fanout.replies[row]
    return Answer(
        fanout.group.members[row].name,
        outputs,
        Source.DIRECT,
        noise_gain=0.0,
        quality=None,
        latency_s=fanout.latency_s[row],
        model_version=version,
        request_id=fanout.request.options.request_id,
    )


def _decoded(fanout: Fanout, decoding: Decoding, lost: Sequence[int]) -> dict[int, Answer]:
    group = fanout.group
    began = time.perf_counter()
    arrays = {
        tensor.name: decode(decoding, fanout.outputs(decoding.sources, tensor.name), shapes)
        for tensor, shapes in zip(group.outputs, _own_shapes(group, decoding.originals), strict=True)
    }
    fanout.decode_s = time.perf_counter() - began
    elapsed_s = fanout.elapsed_s
    erased = [group.members[row].name for row in lost]
    found = {}
    for index, (row, noise_gain) in enumerate(zip(decoding.originals, decoding.noise_gain, strict=True)):
        name = group.members[row].name
        outputs = {output: decoded[index] for output, decoded in arrays.items()}
        quality = group.expected_quality(erased, name)
        found[row] = Answer(
            name,
            outputs,
            Source.DECODED,
            noise_gain=noise_gain,
            quality=quality,
            latency_s=elapsed_s,
            request_id=fanout.request.options.request_id,
        )
    return found


def _own_shapes(group: Group, rows: Sequence[int]) -> list[list[tuple[int, ...]] | None]:
    """Return, for each output, the shapes that these members' have; None where all members' are of one shape."""
    if not any(member.output_shapes for member in group.members):
        return [None] * len(group.outputs)
    own = [group.outputs_of(group.members[row]) for row in rows]
    return [[tensors[place].shape for tensors in own] for place in range(len(group.outputs))]
