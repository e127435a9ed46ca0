"""A reader of whole tracks in batches of about one length."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from training.batch_reader import BUFFER_BYTES, READ_BYTES, Batch, BatchReader
from training.errors import ReaderError
from training.read_ahead import BATCHES_HELD
from training.row_order import Rows, track_batches, window_starts

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore


class TrackReader(BatchReader):
    """Batches of whole tracks of about one length, in random order or the shortest first.

    Parameters
    ----------
    store, features, seed, rank, world_size, targets, as_stored
        As of `ChunkReader`. Every rank gets the same number of batches; up to ``world_size - 1`` batches
        are left out of an epoch.
    batch_size
        Most tracks of a batch.
    chunks_per_batch
        Most chunks of a batch, padding included. One of the two is needed, and both may be given.
    max_chunks
        Take only so many chunks of longer tracks.
    window
        Which: ``"random"``, another stretch in every epoch, or ``"start"``.
    buffer_bytes
        Most memory that rows and batches take, for each worker.
    shuffle
        False: the shortest tracks first, and their starts.

    Raises
    ------
    ReaderError, UnknownNameError, TargetError
        As of `ChunkReader`.

    Notes
    -----
    A batch is a dict of tensors: each feature, (track, chunk, ...), padded with zeros to the longest track;
    ``n_chunks`` (track,) int64; ``valid_frames`` (track, chunk) int32, 0 where there is no chunk;
    ``track`` (track,) int64, numbers in `track_ids`; ``chunk`` (track,) int64, the first chunk's number;
    ``target`` if there are targets. The order does not depend on the number of workers.
    """

    order_depends_on_workers = False

    def __init__(
        self,
        store: "FeatureStore",
        features: str | Sequence[str],
        *,
        batch_size: int | None = None,
        chunks_per_batch: int | None = None,
        max_chunks: int | None = None,
        window: Literal["random", "start"] = "random",
        buffer_bytes: int = BUFFER_BYTES,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        targets: Any = None,
        as_stored: bool = False,
    ) -> None:
        super().__init__(
            store, features, buffer_bytes=buffer_bytes, seed=seed, shuffle=shuffle, rank=rank,
            world_size=world_size, targets=targets, as_stored=as_stored,
        )  # fmt: skip
        limits = {"batch_size": batch_size, "chunks_per_batch": chunks_per_batch, "max_chunks": max_chunks}
        if wrong := [name for name, limit in limits.items() if limit is not None and limit < 1]:
            raise ReaderError(f"expected a {wrong[0]} of 1 or more, got {limits[wrong[0]]}.")
        if batch_size is None and chunks_per_batch is None:
            raise ReaderError("expected batch_size or chunks_per_batch, got neither.")
        table = self._source.table
        # A track's chunks follow each other in stored order, and it has at least one.
        self._first = np.flatnonzero(np.diff(table.track, prepend=-1)).astype(np.int64)
        self._n_chunks = np.diff(self._first, append=len(table)).astype(np.int64)
        self._max_chunks = max_chunks or int(self._n_chunks.max())
        self._taken = np.minimum(self._n_chunks, self._max_chunks)
        self._limits = {"batch_size": batch_size, "chunks_per_batch": chunks_per_batch}
        self._random_window = window == "random" and shuffle
        self.settings |= {**limits, "window": window}
        if chunks_per_batch is not None and self._taken.max() > chunks_per_batch:
            raise ReaderError(
                f"the longest track has {self._taken.max()} chunks, but chunks_per_batch is "
                f"{chunks_per_batch}. Raise it or set max_chunks."
            )
        batches = self._batches_of_all(0)
        self._n_batches = len(batches) // self.world_size
        if self._n_batches == 0:
            raise ReaderError(
                f"{len(self._first)} tracks make no batch for each of {self.world_size} ranks. "
                "Select more tracks or make smaller batches."
            )
        largest = max(len(batch) * int(self._taken[batch].max()) for batch in batches)
        row_bytes = self._source.encoded_bytes
        spare = buffer_bytes - BATCHES_HELD * largest * self._source.batch_bytes
        if spare < 2 * row_bytes:
            raise ReaderError(
                f"buffer_bytes is {buffer_bytes:,}, but batches of up to {largest} chunks need "
                f"{buffer_bytes - spare + 2 * row_bytes:,}. Raise it, make smaller batches or set max_chunks."
            )
        self._read_rows = max(1, min(READ_BYTES, spare // 2) // row_bytes)

    def _batches_of_all(self, epoch: int) -> list[Rows]:
        return track_batches(
            self._taken, **self._limits, shuffle=self.shuffle, seed=self.seed, epoch=epoch
        )  # fmt: skip

    def __len__(self) -> int:
        return self._n_batches

    def _own(self, epoch: int, worker: int, n_workers: int) -> list[Rows]:
        """Return one worker's batches, as numbers of tracks in stored order."""
        of_rank = self._batches_of_all(epoch)[self.rank :: self.world_size][: self._n_batches]
        return of_rank[worker::n_workers]

    def _worker_order(self, epoch: int, worker: int, n_workers: int) -> list[Rows]:
        track = self._source.table.track[self._first].astype(np.int64)
        return [track[batch] for batch in self._own(epoch, worker, n_workers)]

    def _made(self, epoch: int, first: int, worker: int, n_workers: int) -> Iterator[Batch]:
        starts = np.zeros_like(self._first)
        if self._random_window:
            starts = window_starts(self._n_chunks, self._max_chunks, seed=self.seed, epoch=epoch)
        with self._source.decoders():
            for tracks in self._own(epoch, worker, n_workers)[first:]:
                yield self._batch(tracks, starts[tracks])

    def _batch(self, tracks: Rows, starts: Rows) -> Batch:
        table = self._source.table
        counts = self._taken[tracks]
        longest = int(counts.max())
        batch = self._source.tensors(len(tracks), longest, padded=True)
        valid_frames = np.zeros((len(tracks), longest), dtype=np.int32)
        for i, (begin, count) in enumerate(zip(self._first[tracks] + starts, counts, strict=True)):
            valid_frames[i, :count] = table.valid_frames[begin : begin + count]
            for done in range(0, count, self._read_rows):
                numbers = np.arange(begin + done, begin + min(count, done + self._read_rows))
                self._source.fill(batch, i * longest + done, self._source.read(numbers))
        batch["n_chunks"] = torch.from_numpy(counts)
        batch["valid_frames"] = torch.from_numpy(valid_frames)
        batch["chunk"] = torch.from_numpy(starts)
        return self._labelled(batch, table.track[self._first[tracks]])
