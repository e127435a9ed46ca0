"""A DataLoader over a reader, which counts what it delivers and can go on from there."""

import atexit
import weakref
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset, Sampler

from training.errors import ReaderStateError

if TYPE_CHECKING:
    from training.batch_reader import Batch, BatchReader
    from training.read_ahead import ReadAhead

_Token = tuple[int, int]  # epoch, and number of a batch in it


class BatchLoader:
    """Batches of a reader, epoch after epoch, from any number of worker processes.

    Each iteration is the next epoch, the first of all epoch 0; `set_epoch` chooses another one. Workers
    live as long as the loader. Scripts need the usual ``if __name__ == "__main__":`` if there are any.

    Parameters
    ----------
    reader
        What to read.
    num_workers
        Processes; 0 reads in a thread of this one.
    **options
        For `DataLoader`.

    Notes
    -----
    `state_dict` between two batches and `load_state_dict` into a loader of the same data and settings, in
    another process too, give exactly the batches that were still to come; of a `TrackReader` with any number
    of workers. The state is the same on every rank, so that one rank's serves all.
    """

    def __init__(self, reader: "BatchReader", *, num_workers: int = 0, **options: Any) -> None:
        self.reader = reader
        self._n_workers = max(1, num_workers)
        self._settings = dict(reader.settings)
        if reader.order_depends_on_workers:
            self._settings["num_workers"] = self._n_workers
        self._numbers = _Numbers(len(reader))
        self._epoch, self._delivered = 0, 0
        if num_workers:
            # Not a fork: the parent has threads, of the reader and of the Delta library, whose locks it would copy.
            options = {"multiprocessing_context": "spawn", "persistent_workers": True, **options}
        self._options = {"num_workers": num_workers, **options}
        self._loader: DataLoader[Batch] | None = None
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None
        self._chosen = True
        _OPEN.add(self)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return len(self.reader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._epoch, self._delivered, self._chosen = epoch, 0, True

    def __iter__(self) -> "Iterator[Batch]":
        if not self._chosen:
            self._epoch, self._delivered = self._epoch + 1, 0
        self._chosen = False
        self._numbers.epoch, self._numbers.first = self._epoch, self._delivered
        if self._loader is None:
            batches = _NumberedBatches(self.reader, self._n_workers)
            self._loader = DataLoader(batches, sampler=self._numbers, batch_size=None, **self._options)
        delivered = self._counted(iter(self._loader))
        self._running = weakref.ref(delivered)
        return delivered

    def _counted(self, batches: "Iterator[Batch]") -> "Generator[Batch, None, None]":
        for batch in batches:
            self._delivered += 1
            yield batch

    def close(self) -> None:
        """End the workers and the iteration under way; a later one starts others."""
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()
        self._loader = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: what JSON can hold, and nothing else."""
        epoch, delivered = self._epoch, self._delivered
        if delivered == len(self.reader):
            epoch, delivered = epoch + 1, 0
        return {**self._settings, "epoch": epoch, "batches": delivered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader was.

        Raises
        ------
        ReaderStateError
            If it was of other data or settings.
        """
        for name, own in self._settings.items():
            if name not in state:
                raise ReaderStateError(f"the state has no {name!r}, so it is not one of a batch loader.")
            if state[name] != own:
                action = "Make the reader and its loader as they were."
                if name == "snapshot":
                    action = f"Open the store as it was: FeatureStore(..., snapshot={state[name]})."
                raise ReaderStateError(
                    f"the state was saved with {name} {state[name]}, this loader has {own}. {action}"
                )
        epoch, delivered = state.get("epoch"), state.get("batches")
        if not (isinstance(epoch, int) and isinstance(delivered, int) and 0 <= delivered < len(self.reader)):
            raise ReaderStateError(
                f"the state is at batch {delivered} of epoch {epoch}, expected one of {len(self.reader)} batches."
            )
        self._epoch, self._delivered, self._chosen = epoch, delivered, True


_OPEN: "weakref.WeakSet[BatchLoader]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let workers end by themselves: killed with their parent, they would leave semaphores behind."""
    for loader in list(_OPEN):
        loader.close()


class _Numbers(Sampler[_Token]):
    """Epoch and number of each batch still to come; handed to the workers in turn."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return self.n_batches - self.first

    def __iter__(self) -> Iterator[_Token]:
        return iter([(self.epoch, number) for number in range(self.first, self.n_batches)])


class _NumberedBatches(Dataset["Batch"]):
    """Batches by epoch and number, for a worker that is asked for those of one stream in turn.

    Asking by number, and not for whatever comes next, lets workers stay from epoch to epoch and start
    anywhere without being told anything beside.
    """

    def __init__(self, reader: "BatchReader", n_workers: int) -> None:
        self._reader = reader
        self._n_workers = n_workers
        self._stream: ReadAhead | None = None
        self._next: _Token | None = None

    def __getitem__(self, token: _Token) -> "Batch":
        epoch, number = token
        if self._stream is None or token != self._next:
            if self._stream is not None:
                self._stream.close()
            turn, worker = divmod(number, self._n_workers)
            self._stream = self._reader.batches(epoch, turn, worker, self._n_workers)
        self._next = epoch, number + self._n_workers
        batch: Batch = next(self._stream)
        if self._next[1] >= len(self._reader):
            self._stream.close()
            self._stream = None
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_next": None}
