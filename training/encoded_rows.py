"""Rows of several features read as they lie in the store, and decompressed straight into a batch."""

import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.definitions import AUDIO_SCALE
from pipeline.errors import StoreError
from pipeline.store.chunk_table import ChunkTable
from pipeline.store.shard_reader import ShardReader, StoredRows

ROW_OVERHEAD_BYTES = 128  # most that an encoded row takes beyond its values, Python's object included
# Torch converts more values than this with all its threads, and waits for them; a decoder is one of several.
_VALUES_AT_ONCE = 32_767
FREE_KEPT = 2
# Decompression lets other threads run; more than a few only wait for each other.
DECODERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class EncodedRow(NamedTuple):
    """One row of one feature, checked and not decompressed yet."""

    reader: ShardReader
    number: int
    content: memoryview | None

    def into(self, out: NDArray[Any]) -> None:
        """Decompress it."""
        if self.content is None:
            raise StoreError(f"{self.reader.name}: row {self.number} was erased (`mirstore forget`).")
        self.reader.decode(self.content, out, self.number)


class RowPool:
    """Encoded chunks that wait to be drawn, in memory of a fixed size.

    As bytes objects of their own, which come and go in no order, they would leave the allocator with
    gaps as large as themselves.

    Parameters
    ----------
    capacity
        Most chunks at a time.
    lengths
        Most bytes of a row of each feature.
    """

    def __init__(self, capacity: int, lengths: Sequence[int]) -> None:
        self._memory = [np.empty((capacity, length), dtype=np.uint8) for length in lengths]
        self._free = list(range(capacity))
        self._held: dict[int, tuple[int, tuple[EncodedRow, ...]]] = {}

    def add(self, number: int, chunk: tuple[EncodedRow, ...]) -> None:
        """Keep a copy of a chunk under a number."""
        slot = self._free.pop()
        kept = []
        for memory, row in zip(self._memory, chunk, strict=True):
            if row.content is not None:
                place = memory[slot, : len(row.content)]
                place[:] = np.frombuffer(row.content, dtype=np.uint8)
                row = row._replace(content=place.data)
            kept.append(row)
        self._held[number] = slot, tuple(kept)

    def __getitem__(self, number: int) -> tuple[EncodedRow, ...]:
        return self._held[number][1]

    def remove(self, numbers: Iterable[int]) -> None:
        """Give the places of chunks to others."""
        self._free += [self._held.pop(number)[0] for number in numbers]


class RowQueue:
    """Encoded chunks that are drawn in the order in which they came; used as `RowPool`, without its copies."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[EncodedRow, ...]] = {}

    def add(self, number: int, chunk: tuple[EncodedRow, ...]) -> None:
        """Keep a chunk under a number."""
        self._held[number] = chunk

    def __getitem__(self, number: int) -> tuple[EncodedRow, ...]:
        return self._held[number]

    def remove(self, numbers: Iterable[int]) -> None:
        """Give up chunks."""
        for number in numbers:
            del self._held[number]


class BatchMemory:
    """Memory of batches, taken up again when a batch is dropped.

    Batches are made by one thread and dropped by another. The allocator would keep gaps of their size for
    either, and the process would take up to twice what it holds; memory of their own for each would have to
    be made by the system, page by page, at the price of decompressing into it. The pages are large ones where
    the system has them, which takes a quarter of the time.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def __reduce__(self) -> tuple[type["BatchMemory"], tuple[()]]:
        return BatchMemory, ()

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor with whatever values; its memory is free again when nothing uses it any more."""
        size = int(np.prod(shape)) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        memory = self._taken(size)
        values = np.frombuffer(memory, dtype=np.uint8, count=size)
        weakref.finalize(values, self._give_back, memory).atexit = False
        return torch.from_numpy(values).view(dtype).view(shape)

    def _taken(self, size: int) -> mmap.mmap:
        fitting = [memory for memory in self._free if len(memory) >= size]
        for memory in sorted(fitting, key=len):
            with suppress(ValueError):  # another thread was faster
                self._free.remove(memory)
                return memory
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _give_back(self, memory: mmap.mmap) -> None:
        self._free.append(memory)
        if len(self._free) > FREE_KEPT:
            self._free.remove(min(self._free, key=len))


class EncodedRows:
    """Features of the chunks of a table.

    Parameters
    ----------
    rows
        What to read, by the name it gets in a batch.
    table
        Chunks that have all of it.
    as_stored
        Keep the stored types; else everything becomes float32, int16 audio with full scale 1.
    """

    def __init__(self, rows: Mapping[str, StoredRows], table: ChunkTable, *, as_stored: bool) -> None:
        self.table = table
        self._rows = dict(rows)
        self._as_stored = as_stored
        self._threads: ThreadPoolExecutor | None = None
        self._memory = BatchMemory()

    @contextmanager
    def decoders(self) -> Iterator[None]:
        """Decompress with several threads in this block, unless this is one of several processes that read."""
        if DECODERS == 1 or torch.utils.data.get_worker_info() is not None:
            yield
            return
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="mirstore decoder") as threads:
            self._threads = threads
            try:
                yield
            finally:
                self._threads = None

    @property
    def encoded_lengths(self) -> list[int]:
        """Most bytes of a row of each feature as `read` gives it: what does not compress is stored as it is."""
        return [rows.row_bytes + ROW_OVERHEAD_BYTES for rows in self._rows.values()]

    @property
    def encoded_bytes(self) -> int:
        """Most bytes of a chunk as `read` gives it."""
        return sum(self.encoded_lengths)

    @property
    def batch_bytes(self) -> int:
        """Bytes of a chunk in a batch."""
        return sum(int(np.prod(rows.row_shape)) * self._dtype(rows).itemsize for rows in self._rows.values())

    def _dtype(self, rows: StoredRows) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, rows.dtype.name) if self._as_stored else torch.float32
        return dtype

    def read(self, numbers: NDArray[np.int64]) -> list[tuple[EncodedRow, ...]]:
        """Return chunks of the table, what lies together read in one piece.

        Parameters
        ----------
        numbers
            (chunk,) in the table.

        Returns
        -------
        list of tuple
            A row of each feature for each chunk.

        Raises
        ------
        StoreDamagedError
            If a checksum does not match.
        """
        shares = self._each_share(len(numbers), lambda share: self._read(numbers[share]))
        return [chunk for share in shares for chunk in share]

    def _read(self, numbers: NDArray[np.int64]) -> list[tuple[EncodedRow, ...]]:
        part, row = self.table.part[numbers], self.table.row[numbers]
        breaks = np.flatnonzero((np.diff(part) != 0) | (np.diff(row) != 1)) + 1
        bounds = [0, *breaks.tolist(), len(row)]
        columns: list[list[EncodedRow]] = []
        for rows in self._rows.values():
            column: list[EncodedRow] = []
            for first, last in pairwise(bounds):
                reader = rows.reader(self.table.parts[part[first]])
                start, stop = int(row[first]), int(row[last - 1]) + 1
                contents = reader.encoded(start, stop)
                column += [EncodedRow(reader, start + i, content) for i, content in enumerate(contents)]
            columns.append(column)
        return list(zip(*columns, strict=True))

    def tensors(self, *shape: int, padded: bool = False) -> dict[str, torch.Tensor]:
        """Return a tensor a feature, (*shape, ...), to be filled; zeros if it is to be padded."""
        made = {
            name: self._memory.tensor((*shape, *rows.row_shape), self._dtype(rows))
            for name, rows in self._rows.items()
        }
        if padded:
            for tensor in made.values():
                tensor.zero_()
        return made

    def fill(
        self, tensors: Mapping[str, torch.Tensor], where: int, encoded: list[tuple[EncodedRow, ...]]
    ) -> None:
        """Decompress chunks into tensors.

        Parameters
        ----------
        tensors
            As `tensors` makes them.
        where
            Place of the first chunk, counted over the leading axes.
        encoded
            As `read` gives them.

        Raises
        ------
        StoreDamagedError
            If a row cannot be decompressed.
        StoreError
            If it was erased for good.
        """
        self._each_share(len(encoded), lambda share: self._fill(tensors, where + share.start, encoded[share]))

    def _each_share(self, count: int, work: Callable[[slice], Any]) -> list[Any]:
        """Divide so many chunks among the decoders, if there are any; return what came of each share."""
        n_shares = 1 if self._threads is None else min(count, DECODERS)
        shares = [slice(count * i // n_shares, count * (i + 1) // n_shares) for i in range(n_shares)]
        each = map if self._threads is None else self._threads.map
        return list(each(work, shares))

    def _fill(
        self, tensors: Mapping[str, torch.Tensor], where: int, encoded: Sequence[tuple[EncodedRow, ...]]
    ) -> None:
        for column, (name, rows) in enumerate(self._rows.items()):
            flat = tensors[name].view(-1, int(np.prod(rows.row_shape)))
            if self._dtype(rows) == getattr(torch, rows.dtype.name):
                places = flat.numpy()
                for i, chunk in enumerate(encoded, start=where):
                    chunk[column].into(places[i])
                continue
            stored = np.empty(flat.shape[1], dtype=rows.dtype)
            pieces = torch.split(torch.from_numpy(stored), _VALUES_AT_ONCE)
            for i, chunk in enumerate(encoded, start=where):
                chunk[column].into(stored)
                for place, piece in zip(torch.split(flat[i], _VALUES_AT_ONCE), pieces, strict=True):
                    place.copy_(piece)
                    if rows.dtype == np.int16:
                        place.mul_(AUDIO_SCALE)
