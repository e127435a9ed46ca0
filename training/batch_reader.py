"""What readers of chunks and of tracks have in common: what is read, by whom, and in which epoch."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.store.chunk_table import ChunkTable, chunk_table
from training.encoded_rows import EncodedRows
from training.errors import ReaderError
from training.read_ahead import ReadAhead
from training.row_order import Rows, interleaved
from training.targets import track_targets

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore
    from training.loader import BatchLoader

Batch = dict[str, torch.Tensor]

BUFFER_BYTES = 512 * 2**20
# More read in one piece is no faster from a disk, and would only be memory.
READ_BYTES = 4 * 2**20
_KEYS = ("valid_frames", "n_chunks", "track", "chunk", "target")


class BatchReader(IterableDataset[Batch]):
    """What readers of chunks and of tracks have in common; see those.

    A reader is light and goes to worker processes as it is: it knows where rows lie, and holds none.
    """

    order_depends_on_workers: ClassVar[bool]

    def __init__(
        self,
        store: "FeatureStore",
        features: str | Sequence[str],
        *,
        buffer_bytes: int,
        seed: int,
        shuffle: bool,
        rank: int | None,
        world_size: int | None,
        targets: Any,
        as_stored: bool,
    ) -> None:
        names = [features] if isinstance(features, str) else list(features)
        if not names or len(set(names)) < len(names) or set(names) & set(_KEYS):
            raise ReaderError(
                f"expected features, each once and none called {', '.join(_KEYS)}; got {names}."
            )
        stored = {name: store[name] for name in names}
        table = chunk_table(list(stored.values()))
        if not len(table):
            raise ReaderError(f"no track of {store.location} that was selected has {' and '.join(names)}.")
        self.rank, self.world_size = _rank(rank, world_size)
        if not 0 <= self.rank < self.world_size:
            raise ReaderError(f"expected 0 <= rank < world_size, got {self.rank} and {self.world_size}.")
        if seed < 0:
            raise ReaderError(f"expected a seed of 0 or more, got {seed}.")
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.track_ids: NDArray[np.object_] = table.track_ids.to_numpy()
        self.buffer_bytes = buffer_bytes
        self._rows = {name: feature.rows for name, feature in stored.items()}
        self._source = EncodedRows(self._rows, table, as_stored=as_stored)
        self._targets: NDArray[Any] | None = None
        if targets is not None:
            self._targets = track_targets(store, targets, table.track_ids, np.unique(table.track))
        self.settings: dict[str, Any] = {
            "reader": type(self).__name__,
            "snapshot": store.snapshot,
            "features": {name: feature.fingerprint for name, feature in stored.items()},
            "chunks": _digest(table),
            "as_stored": as_stored,
            "seed": seed,
            "shuffle": shuffle,
            "world_size": self.world_size,
        }

    @abstractmethod
    def __len__(self) -> int:
        """Return how many batches a rank gets in an epoch."""

    @abstractmethod
    def _worker_order(self, epoch: int, worker: int, n_workers: int) -> list[Rows]:
        """Return what one worker's batches hold."""

    @abstractmethod
    def _made(self, epoch: int, first: int, worker: int, n_workers: int) -> Iterator[Batch]:
        """Make one worker's batches from its `first` on."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iterating over the reader itself gives, as of a `DistributedSampler`.

        It stays until another is chosen. A `loader` counts its epochs by itself.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        return self.batches(self.epoch, 0, *((worker.id, worker.num_workers) if worker else (0, 1)))

    def batches(self, epoch: int, first: int = 0, worker: int = 0, n_workers: int = 1) -> ReadAhead:
        """Return one worker's batches, made ahead by a thread.

        Parameters
        ----------
        epoch
            Number of the epoch.
        first
            How many of the worker's batches to leave out; they are not read.
        worker, n_workers
            Which of how many workers of this rank. Worker `w` makes batches w, w + n_workers, ...
        """
        return ReadAhead(self._made(epoch, first, worker, n_workers))

    def order(self, epoch: int = 0, *, num_workers: int = 0) -> list[Rows]:
        """Return what the batches of an epoch hold, worked out without reading.

        Parameters
        ----------
        epoch
            Number of the epoch.
        num_workers
            As for `loader`.

        Returns
        -------
        list of (row,) int64
            By batch: numbers of chunks in `chunks` (of a `ChunkReader`) or of tracks in `track_ids`.
        """
        workers = max(1, num_workers)
        return interleaved([self._worker_order(epoch, worker, workers) for worker in range(workers)])

    def loader(self, *, num_workers: int = 0, **options: Any) -> "BatchLoader":
        """Return a loader that can be saved and resumed at any batch.

        Parameters
        ----------
        num_workers
            Processes that read; 0 reads in a thread of this one.
        **options
            For `torch.utils.data.DataLoader`: ``pin_memory``, ``prefetch_factor``, ``multiprocessing_context``.
        """
        from training.loader import BatchLoader

        return BatchLoader(self, num_workers=num_workers, **options)

    def _labelled(self, batch: Batch, track: NDArray[np.int32]) -> Batch:
        batch["track"] = torch.from_numpy(track.astype(np.int64))
        if self._targets is not None:
            batch["target"] = torch.from_numpy(self._targets[track])
        return batch


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ReaderError(f"expected rank and world_size or neither, got {rank} and {world_size}.")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _digest(table: ChunkTable) -> str:
    """Return a hash of which chunks there are and where they lie."""
    found = hashlib.sha256("\n".join(table.parts).encode())
    for column in (table.part, table.row, table.track):
        found.update(column.tobytes())
    return found.hexdigest()[:16]
