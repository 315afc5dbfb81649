from pathlib import Path

from scripts.tail.repositories import replicated
from tests.repository.groups import make_group


def test_a_replica_is_a_coded_model_with_the_row_of_its_original(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    copied = replicated(group, 1)
    assert [member.name for member in copied.members] == ["a", "b", "a_replica"]
    assert copied.members[2].row == copied.members[0].row == (1.0, 0.0)
    assert copied.members[2].digest == copied.members[0].digest
    assert copied.code.decodable([1, 2])
    assert not copied.code.decodable([0, 2])
    assert replicated(group, 2).code.decodable([2, 3])
