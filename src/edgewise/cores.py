"""Work on several processor cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


def usable_cores() -> int:
    """Cores in this process's affinity mask, where the system has one; else all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_each(items: Iterable[Item], do: Callable[[Item], object], threads: int) -> None:
    """Call `do` with every item, on so many threads.

    The first exception is raised, and items that have not begun are then skipped. Threads are
    enough where `do` spends its time in compiled code, which runs without the interpreter's lock.
    """
    if threads <= 1:
        for item in items:
            do(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(do, item) for item in items]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C too: stop after the items that are being worked on
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if len(finished) < len(futures):
            pool.shutdown(wait=True, cancel_futures=True)
        for future in finished:
            future.result()
