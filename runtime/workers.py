"""Work spread over processes, which tell how far they are, and end with the one that people see."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeAlias, TypeVar

Word = TypeVar("Word")
Found = TypeVar("Found")
Work: TypeAlias = Callable[[Callable[[Word], None]], Found]
"""What a worker does: it is called with where to tell how far it is, and can be pickled, as what it tells."""

_PATIENCE_S = 0.2
"""Between two looks at what was told."""


class WorkerLost(Exception):
    """A worker was ended from outside."""


def spread(
    works: Sequence[Work[Word, Found]],
    *,
    workers: int,
    told: Callable[[Word], None],
    done: Callable[[Found], None] = lambda found: None,
) -> list[Found]:
    """What each of `works`, one or more, came to, in their order, by at most so many processes. Here, `told`
    hears what they tell, and `done` what came out as soon as it does: all that a work told has been heard by
    then. Raises what a work or a callback raises, KeyboardInterrupt and WorkerLost too, once no worker is
    left."""
    context = multiprocessing.get_context("spawn")
    # Of this kind, since what a worker puts lies there before its result does: no last word is missed.
    words: SimpleQueue[Word] = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(workers, len(works)), mp_context=context, initializer=_begin, initargs=(words,)
    ) as pool:
        try:
            with _uninterrupted():
                futures = [pool.submit(_work, work) for work in works]
            waiting = set(futures)
            while waiting:
                finished, waiting = concurrent.futures.wait(
                    waiting, _PATIENCE_S, concurrent.futures.FIRST_COMPLETED
                )
                while not words.empty():
                    told(words.get())
                # One that failed is told of once the others are safe.
                for future in sorted(finished, key=lambda each: each.exception() is not None):
                    done(future.result())
            return [future.result() for future in futures]
        except BaseException as error:
            # The pool then finds itself broken, drops what waits, and is waited for.
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise WorkerLost("a process was ended from outside (out of memory?)") from error
            raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait meanwhile, so that no process is half begun. Ctrl-C never reaches those that
    begin here: it is for the one that people see, which ends the others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_words: SimpleQueue[Any]
"""In a worker: where it tells how far it is."""


def _begin(words: SimpleQueue[Any]) -> None:
    """A worker's beginning. It ends with its parent, even one that was killed."""
    global _words  # all that a pool hands its workers but for tasks
    _words = words
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(work: Work[Any, Found]) -> Found:
    return work(_words.put)
