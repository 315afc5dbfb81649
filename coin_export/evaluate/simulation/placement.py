"""Which servers the members of every group are placed on: evenly, in failure domains of equal size."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from coin_export.errors import UserError


class Placement(Enum):
    """Where the members of a group are, always on different servers."""

    APART = "apart"  # in different failure domains, as far as there are enough
    ANYWHERE = "anywhere"
    TOGETHER = "together"  # in one failure domain


def domain_of(servers: int, domains: int) -> list[int]:
    """Return the failure domain of each server."""
    return [server * domains // servers for server in range(servers)]


def place(
    placement: Placement, members: int, servers: int, domains: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Place as many groups as there are servers, so that every server holds ``members`` of them.

    The servers form a table of domains times positions, and every group has a cell of its own. Its members are at
    shifted domains and shuffled positions from there: evenly, and so that groups which share one server seldom
    share another.

    Returns:
        The server of each member, shape (servers, members).

    Raises:
        UserError: if the servers do not divide into the domains, or the members do not fit.
    """
    if servers % domains:
        raise UserError(f"{servers} servers do not divide into {domains} failure domains of the same size")
    size = servers // domains
    if placement is Placement.ANYWHERE:
        domains, size = 1, servers
    room = size if placement is Placement.TOGETHER else servers
    if members > room:
        raise UserError(f"{members} members of a group do not fit on {room} servers, each on its own")
    domain, position = np.divmod(np.arange(servers), size)
    shift, along = random.permutation(domains), random.permutation(size)
    shuffles = [random.permutation(size) for _ in range(min(domains, members))]
    placed = np.empty((servers, members), dtype=np.int64)
    for member in range(members):
        if placement is Placement.TOGETHER:
            placed[:, member] = domain * size + (position + along[member]) % size
        else:
            # Members that wrap around to the same domain share its shuffle and differ in their place in it.
            lap, turn = divmod(member, domains)
            there = (domain + shift[turn]) % domains
            placed[:, member] = there * size + (shuffles[turn][position] + along[lap]) % size
    return placed
