"""Real servers for the tests of faults; every test finds them in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coin_export.errors import TritonNotFoundError
from coin_export.serve.tritonserver import find_tritonserver
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import ONE_CODED, TWO_CODED, write_linear_group


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, where there is no tritonserver, what needs one."""
    try:
        find_tritonserver()
    except TritonNotFoundError as error:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.fixture(params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def cluster_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(write_linear_group(tmp_path_factory.mktemp("three"), ONE_CODED)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_of_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(write_linear_group(tmp_path_factory.mktemp("four"), TWO_CODED)) as cluster:
        yield cluster


@pytest.fixture
def three(cluster_of_three: Cluster) -> Iterator[Cluster]:
    """Two originals and a coded model."""
    yield cluster_of_three
    cluster_of_three.repair()


@pytest.fixture
def four(cluster_of_four: Cluster) -> Iterator[Cluster]:
    """Two originals and two coded models."""
    yield cluster_of_four
    cluster_of_four.repair()
