import threading

import pytest

from distributed.data.prefetch import prefetch


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth):
    assert list(prefetch(iter(range(20)), depth)) == list(range(20))


def test_the_lead_is_bounded():
    made = []
    reached = threading.Semaphore(0)

    def source():
        for i in range(100):
            made.append(i)
            reached.release()
            yield i

    items = prefetch(source(), 3)
    assert next(items) == 0
    for _ in range(4):  # item 0 and the three ahead of it are made …
        assert reached.acquire(timeout=60)
    assert not reached.acquire(timeout=0.2)  # … and no more
    items.close()
    assert len(made) == 4


def test_closing_early_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = prefetch(source(), 2)
    next(items)
    items.close()
    assert closed.is_set()


def test_items_before_an_error_still_come():
    def source():
        yield 1
        raise KeyError("late")

    items = prefetch(source(), 2)
    assert next(items) == 1
    with pytest.raises(KeyError, match="late"):
        next(items)
