"""A reader of chunks in batches, in random order or as stored."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.store.chunk_table import ChunkTable
from training.batch_reader import BUFFER_BYTES, READ_BYTES, Batch, BatchReader
from training.encoded_rows import EncodedRow, RowPool, RowQueue
from training.errors import ReaderError
from training.read_ahead import BATCHES_HELD
from training.row_order import Rows, buffered_order, epoch_sequence, n_batches, worker_share

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore


class ChunkReader(BatchReader):
    """Batches of chunks, in random order or as stored.

    Shards are taken in random order and read from start to end; batches are drawn at random from a
    buffer of rows, kept compressed until they are drawn. The order depends only on `seed`, the epoch, the
    number of rows, ranks and workers, and the buffer's length.

    Parameters
    ----------
    store
        An open store, or some tracks of one (`FeatureStore.select`).
    features
        Name or names; only tracks that have all of them are read.
    batch_size
        Chunks of a batch; 32 by default.
    buffer_bytes
        Most memory that rows and batches take, for each worker: the buffer, what is read ahead and three
        batches. What DataLoader itself keeps of finished batches (`prefetch_factor`) comes on top.
    seed
        Another one gives another order.
    shuffle
        False: as stored, shard after shard.
    rank, world_size
        Which of how many processes this is; by default as torch.distributed says, else the only one.
        Every rank gets the same number of rows; up to ``world_size - 1`` rows are left out of an epoch.
    targets
        Name or names of columns of ``store.tracks``, or a Series or DataFrame by `track_id`.
    drop_last
        Leave out a last batch that is not full.
    as_stored
        Give the stored types instead of float32.

    Raises
    ------
    ReaderError
        If settings do not go together, or no track has the features.
    UnknownNameError
        If there is no such feature or column.
    TargetError
        If a track lacks a target.

    Notes
    -----
    A batch is a dict of tensors: each feature by its name, (chunk, ...); ``valid_frames`` (chunk,) int32;
    ``track`` (chunk,) int64, numbers in `track_ids`; ``chunk`` (chunk,) int64, its number in its track;
    ``target`` if there are targets. For a DataLoader of one's own: ``DataLoader(reader, batch_size=None)``.

    Examples
    --------
    >>> reader = ChunkReader(store, "logmel", batch_size=32, targets="genre_code")  # doctest: +SKIP
    >>> for batch in reader.loader(num_workers=2):  # doctest: +SKIP
    ...     batch["logmel"], batch["target"]
    """

    order_depends_on_workers = True

    def __init__(
        self,
        store: "FeatureStore",
        features: str | Sequence[str],
        *,
        batch_size: int = 32,
        buffer_bytes: int = BUFFER_BYTES,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        targets: Any = None,
        drop_last: bool = False,
        as_stored: bool = False,
    ) -> None:
        super().__init__(
            store, features, buffer_bytes=buffer_bytes, seed=seed, shuffle=shuffle, rank=rank,
            world_size=world_size, targets=targets, as_stored=as_stored,
        )  # fmt: skip
        if batch_size < 1:
            raise ReaderError(f"expected a batch_size of 1 or more, got {batch_size}.")
        self.batch_size = batch_size
        self.drop_last = drop_last
        table = self.chunks
        first = [rows.reader(table.parts[table.part[0]]) for rows in self._rows.values()]
        self._bounds = table.blocks(min(reader.rows_per_shard for reader in first))
        self._n_rows = len(table) // self.world_size
        if len(self) == 0:
            raise ReaderError(
                f"{len(table)} chunks make no batch of {batch_size} for each of {self.world_size} ranks. "
                "Select more tracks or make smaller batches."
            )
        self._read_rows, self.capacity = self._division(int(np.diff(self._bounds).max()))
        self.settings |= {"batch_size": batch_size, "drop_last": drop_last, "capacity": self.capacity}

    def _division(self, longest_block: int) -> tuple[int, int]:
        """Return rows to read in one piece and rows of the shuffle buffer that fit into `buffer_bytes`."""
        row_bytes = self._source.encoded_bytes
        in_batches = BATCHES_HELD * self.batch_size * self._source.batch_bytes
        rows = (self.buffer_bytes - in_batches) // row_bytes
        least = 2 * self.batch_size if self.shuffle else self.batch_size
        # Rows read in one piece are there as they came and in the pool; without a pool they stay until the last
        # of them is drawn. The third time is the allocator's.
        read = max(1, min(longest_block, READ_BYTES // row_bytes, rows // 8, (rows - least) // 3))
        capacity = rows - 3 * read
        if capacity < least:
            needed = in_batches + (least + 3) * row_bytes
            raise ReaderError(
                f"buffer_bytes is {self.buffer_bytes:,}, but batches of {self.batch_size} need {needed:,}. "
                "Raise it or make smaller batches."
            )
        return read, min(capacity, len(self.chunks)) if self.shuffle else self.batch_size

    @property
    def chunks(self) -> ChunkTable:
        """Every chunk that may be read, in stored order."""
        return self._source.table

    def __len__(self) -> int:
        return n_batches(self._n_rows, self.batch_size, drop_last=self.drop_last)

    def _piece(self, epoch: int, worker: int, n_workers: int) -> tuple[Rows, Rows]:
        """Return the rows that a worker reads, in order, and the order in which they leave the buffer."""
        sequence = epoch_sequence(
            self._bounds, shuffle=self.shuffle, seed=self.seed, epoch=epoch, rank=self.rank,
            world_size=self.world_size,
        )  # fmt: skip
        start, stop = worker_share(
            len(sequence), self.batch_size, drop_last=self.drop_last, worker=worker, n_workers=n_workers
        )
        if not self.shuffle:
            return sequence[start:stop], np.arange(stop - start)
        order = buffered_order(
            stop - start, capacity=self.capacity, batch_size=self.batch_size, seed=self.seed, epoch=epoch,
            rank=self.rank, worker=worker,
        )  # fmt: skip
        return sequence[start:stop], order

    def _worker_order(self, epoch: int, worker: int, n_workers: int) -> list[Rows]:
        sequence, order = self._piece(epoch, worker, n_workers)
        rows = sequence[order]
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _made(self, epoch: int, first: int, worker: int, n_workers: int) -> Iterator[Batch]:
        sequence, order = self._piece(epoch, worker, n_workers)
        begin = first * self.batch_size
        wanted = np.ones(len(sequence), dtype=bool)
        wanted[order[:begin]] = False
        with self._source.decoders():
            pool = (
                RowPool(self.capacity + self._read_rows, self._source.encoded_lengths)
                if self.shuffle
                else RowQueue()
            )
            read = 0
            for start in range(begin, len(order), self.batch_size):
                drawn = order[start : start + self.batch_size]
                while read <= drawn.max():
                    stop = min(len(sequence), read + self._read_rows)
                    if wanted[read:stop].any():
                        for number, chunk in enumerate(self._source.read(sequence[read:stop]), start=read):
                            if wanted[number]:
                                pool.add(number, chunk)
                            del chunk  # it would keep what was read with it
                    read = stop
                batch = self._batch(sequence[drawn], [pool[number] for number in drawn.tolist()])
                pool.remove(drawn.tolist())
                yield batch
                del batch

    def _batch(self, numbers: Rows, encoded: list[tuple[EncodedRow, ...]]) -> Batch:
        table = self.chunks
        batch = self._source.tensors(len(numbers))
        self._source.fill(batch, 0, encoded)
        batch["valid_frames"] = torch.from_numpy(table.valid_frames[numbers])
        batch["chunk"] = torch.from_numpy(table.chunk[numbers].astype(np.int64))
        return self._labelled(batch, table.track[numbers])
