import time

from scripts.tail.timeline import Event, play


async def test_events_happen_in_order_and_not_before_their_time() -> None:
    happened: list[tuple[int, float]] = []

    def event(name: int, at: float) -> Event:
        return Event(at, lambda: happened.append((name, time.monotonic() - at)))

    start = time.monotonic()
    await play([event(3, start + 0.03), event(1, start - 1.0), event(2, start + 0.01), event(4, start + 0.03)])
    assert [name for name, _ in happened] == [1, 2, 3, 4]
    assert all(late >= 0 for _, late in happened)


async def test_no_events_end_at_once() -> None:
    await play([])
