"""Work ahead in a background thread, with a bounded lead and a clean end."""

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def prefetch(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield what `source` yields, computed up to `depth` items ahead in a thread; 0 computes in place.

    An exception of the source is raised here, in its turn. Leaving the loop early, closing the generator or dropping it
    stops the thread and closes the source before control returns.
    """
    if depth == 0:
        yield from source
        return
    items: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()  # (None, None): the end
    free = threading.Semaphore(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_work, args=(source, items, free, stop), name="data-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is None:
                return
            free.release()
            yield item
    finally:
        stop.set()
        free.release()  # the thread may be waiting for a place
        thread.join()


def _work(source: Iterator[T], items: SimpleQueue, free: threading.Semaphore, stop: threading.Event) -> None:
    try:
        while True:
            free.acquire()
            if stop.is_set():
                break
            try:
                item = next(source)
            except StopIteration:
                items.put((None, None))
                break
            items.put((item, None))
    except BaseException as error:  # handed over: the consumer raises it
        items.put((None, error))
    finally:
        if isinstance(source, Generator):
            source.close()
