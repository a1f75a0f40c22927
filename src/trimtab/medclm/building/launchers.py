"""Running one function over a stream of items: here, in processes, or as Ray Data tasks; results keep the items' order."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from trimtab.checks import whole
from trimtab.ray_cluster import join

T = TypeVar("T")
R = TypeVar("R")

Launcher = Literal["local", "ray"]
CHUNK = 8
"""Items sent to a process at once."""
BLOCK = 256
"""Items of one Ray Data task, and what is done again when its machine is lost."""


def run_local(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function` of each item, in order, in `workers` processes (1: in this one).

    At most `4 * workers * CHUNK` items wait at any time.

    Raises:
        ValueError: workers is below 1.
    """
    whole("workers", workers, 1)
    if workers == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        iterator = iter(items)
        chunks: Iterator[list[T]] = iter(lambda: list(itertools.islice(iterator, CHUNK)), [])
        for results in _windowed(pool, _Chunked(function), chunks, 4 * workers):
            yield from results


def run_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`function` of each item, in order, in `threads` threads; at most twice as many items wait."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from _windowed(pool, function, items, 2 * threads)


class _Chunked(Generic[T, R]):
    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __call__(self, items: Sequence[T]) -> list[R]:
        return [self.function(item) for item in items]


def _windowed(pool: Executor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def run_ray(
    function: Callable[[str], str], items: Iterable[str], spool: Path, address: str | None = None
) -> Iterator[str]:
    """`function` of each item as Ray Data tasks, in order, on a cluster; what a lost machine was at is done again elsewhere.

    The items are written to the folder `spool` first, in files of which each is a task, so that they pass as a stream;
    `spool`, the images and the output must be on storage that all nodes see.

    Args:
        function: of an item; it must pickle.
        items: texts.
        spool: a folder for them.
        address: as `ray_cluster.wanted_address` gives it.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no cluster answers at the address.
    """
    ray, begun = join(address)
    try:
        yield from _mapped(ray, function, items, spool)
    finally:
        if begun:
            ray.shutdown()


def _mapped(ray: Any, function: Callable[[str], str], items: Iterable[str], spool: Path) -> Iterator[str]:
    importlib.import_module("ray.data")
    import pyarrow as pa
    import pyarrow.parquet as pq

    spool.mkdir(parents=True, exist_ok=True)
    for old in spool.glob("*.parquet"):
        old.unlink()
    iterator = iter(items)
    number = 0
    while block := list(itertools.islice(iterator, BLOCK)):
        pq.write_table(pa.table({"item": block}), _block_file(spool, number))
        number += 1
    if number == 0:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # a task for each file: read_parquet would put small files together, those of a small build into one task on one machine
    blocks = ray.data.range(number, override_num_blocks=number)
    for row in blocks.flat_map(_OfBlock(function, spool.resolve())).iter_rows():
        yield row["result"]


class _OfBlock:
    """`function` on the column "item" of one file of the spool."""

    def __init__(self, function: Callable[[str], str], spool: Path) -> None:
        self.function = function
        self.spool = spool

    def __call__(self, row: dict[str, int]) -> list[dict[str, str]]:
        import pyarrow.parquet as pq

        table = pq.read_table(_block_file(self.spool, int(row["id"])), columns=["item"])
        return [{"result": self.function(item)} for item in table.column("item").to_pylist()]


def _block_file(spool: Path, number: int) -> Path:
    return spool / f"{number:06d}.parquet"
