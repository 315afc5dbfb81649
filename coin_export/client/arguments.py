"""What callers give, checked and turned into what the core takes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from coin_export.client.transport import Parameter, RequestOptions, Timeout
from coin_export.code.manifest import Group
from coin_export.errors import DiscoveryError, RequestError, UserError

Weights = Mapping[str, float] | Literal["coded"] | None

_PLAIN = RequestOptions()


def check_addresses(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses, each once.

    Raises:
        DiscoveryError: if there is none, or one is not ``host:port``.
    """
    if isinstance(addresses, str) or not addresses:
        raise DiscoveryError(f"the addresses are {addresses!r}; give a list with one 'host:port' per server")
    for address in addresses:
        if not re.fullmatch(r"[^/\s]+:\d+", address):
            raise DiscoveryError(
                f"address {address!r} is not 'host:port'; give the port of Triton's gRPC (8001 by default) or HTTP"
            )
    return tuple(dict.fromkeys(addresses))


def check_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the model versions.

    Raises:
        UserError: if one is no number in the form of a text.
    """
    for model, version in versions.items():
        if not isinstance(version, str) or not version.isdecimal():
            raise UserError(f"model_versions[{model!r}] is {version!r}; give a version as text, such as '2'")
    return dict(versions)


def check_deadline(deadline: float | None) -> float:
    """Return the seconds until the deadline; infinite when there is none.

    Raises:
        RequestError: if it is no positive number.
    """
    if deadline is None:
        return math.inf
    if not deadline > 0:
        raise RequestError(f"the deadline is {deadline}; give a positive number of seconds, or None for no deadline")
    return deadline


def check_options(group: Group, options: RequestOptions, deadline: float | None) -> None:
    """Check what of a request's options depends on the group and the deadline.

    Raises:
        RequestError: if a model is not of the group, or a timeout is to follow from no or an infinite deadline.
    """
    if options.parameters_of and not set(options.parameters_of) <= {member.name for member in group.members}:
        names = [member.name for member in group.members]
        raise RequestError(f"parameters_of names {sorted(options.parameters_of)}; the models are {names}")
    if options.timeout == "deadline" and deadline in (None, math.inf):
        raise RequestError("timeout is 'deadline' and there is no deadline; give a finite one, or microseconds")


def wanted_rows(group: Group, wanted: Collection[str] | None) -> tuple[int, ...]:
    """Return the rows of the wanted originals, all when not given.

    Raises:
        RequestError: if there is none, or a name is not that of an original.
    """
    if wanted is None:
        return tuple(range(group.code.k))
    originals = [member.name for member in group.originals]
    if isinstance(wanted, str) or not wanted or not set(wanted) <= set(originals):
        raise RequestError(f"wanted is {wanted!r}; give a list of one or more of {originals}")
    return tuple(row for row, name in enumerate(originals) if name in wanted)


def combination(group: Group, weights: Weights) -> tuple[float, ...]:
    """Return the coefficients of the weighted mean, k numbers that sum to one.

    Raises:
        RequestError: if a name is not that of an original, or the weights are no usable ones.
    """
    names = [member.name for member in group.originals]
    if weights is None:
        return (1 / len(names),) * len(names)
    if weights == "coded":
        return group.code.parities[0]
    if isinstance(weights, str):
        raise RequestError(f"weights is {weights!r}; give a number for each of {names}, or 'coded'")
    if not set(weights) <= set(names):
        raise RequestError(f"weights name {sorted(weights)}; the originals are {names}")
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise RequestError(f"weights are {dict(weights)}; give finite numbers, none negative and not all zero")
    total = math.fsum(weights.values())
    return tuple(float(weights.get(name, 0.0)) / total for name in names)


def request_options(
    request_id: str,
    priority: int,
    timeout: Timeout,
    headers: Mapping[str, str],
    parameters: Mapping[str, Parameter],
    parameters_of: Mapping[str, Mapping[str, Parameter]],
) -> RequestOptions:
    """Make the options of a request; of plain ones only once.

    Raises:
        RequestError: see `RequestOptions`.
    """
    if request_id == "" and priority == 0 and timeout is None and not (headers or parameters or parameters_of):
        return _PLAIN
    return RequestOptions(request_id, priority, timeout, headers, parameters, parameters_of)
