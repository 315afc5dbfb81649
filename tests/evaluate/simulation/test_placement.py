from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coin_export.errors import UserError
from coin_export.evaluate.simulation.placement import Placement, domain_of, place
from coin_export.evaluate.simulation.slowness import Scope, Slowness


@given(st.sampled_from(Placement), st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.integers(0, 99))
def test_groups_are_spread_evenly_with_every_member_on_its_own_server(
    placement: Placement, domains: int, size: int, members: int, seed: int
) -> None:
    servers = domains * size
    if members > (size if placement is Placement.TOGETHER else servers):
        with pytest.raises(UserError, match="do not fit"):
            place(placement, members, servers, domains, np.random.default_rng(seed))
        return
    placed = place(placement, members, servers, domains, np.random.default_rng(seed))
    assert placed.shape == (servers, members)
    assert (np.bincount(placed.ravel(), minlength=servers) == members).all()
    assert all(len(set(group)) == members for group in placed.tolist())
    used = [len(set(group)) for group in np.asarray(domain_of(servers, domains))[placed].tolist()]
    if placement is Placement.APART:
        assert set(used) == {min(members, domains)}
    elif placement is Placement.TOGETHER:
        assert set(used) == {1}


def test_domains_have_the_same_size() -> None:
    assert domain_of(6, 3) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="7 servers do not divide into 3"):
        place(Placement.APART, 2, 7, 3, np.random.default_rng(0))


@pytest.mark.parametrize("scope", Scope)
def test_slow_periods_take_their_share_of_the_time(scope: Scope) -> None:
    slowness = Slowness(share=0.05, scope=scope)
    domains = domain_of(50, 10)
    periods = slowness.draw(np.random.default_rng(1), domains, 2000.0)
    assert all(0.02 <= end - start <= 0.3 for server in periods for start, end in server)
    assert all(first[1] <= second[0] for server in periods for first, second in pairwise(server))
    slow = sum(end - start for server in periods for start, end in server) / 2000
    assert slow / 50 == pytest.approx(0.05, rel=0.1)
    if scope is Scope.DOMAIN:
        assert periods[0] == periods[4] != periods[5]


def test_servers_that_are_never_slow_have_no_periods() -> None:
    assert Slowness().draw(np.random.default_rng(0), [0, 0], 9.0) == [(), ()]
