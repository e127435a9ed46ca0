"""The order in which a training epoch reads rows: a function of seed, epoch and row counts alone.

Nothing here reads a row, so an epoch can be resumed at any batch by working out its order again.

An epoch's sequence is the store's shards in random order. It is cut into one piece of equal length a
rank, and that into one piece a worker. A piece is read from its start to its end, through a buffer
from which each batch is drawn at random: a row can leave only after it has come in, and rows come in
as others leave.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
# One stream of random numbers a purpose, so that none repeats another's.
_SHARDS, _BUFFER, _TRACKS, _BATCHES, _WINDOWS = range(1, 6)


def _random(purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([purpose, *numbers])


def n_batches(n_rows: int, batch_size: int, *, drop_last: bool) -> int:
    """Return how many batches some rows make.

    Examples
    --------
    >>> n_batches(10, 4, drop_last=False), n_batches(10, 4, drop_last=True)
    (3, 2)
    """
    return n_rows // batch_size if drop_last else -(-n_rows // batch_size)


def epoch_sequence(bounds: Rows, *, shuffle: bool, seed: int, epoch: int, rank: int, world_size: int) -> Rows:
    """Return the rows that a rank reads in an epoch, in the order in which it reads them.

    Parameters
    ----------
    bounds
        (block + 1,) int64: block i, which lies in one shard, is rows [bounds[i], bounds[i + 1]).
    shuffle
        Take the blocks in random order; else the rows as stored.
    seed, epoch
        What the order depends on.
    rank, world_size
        Which of how many processes reads. All get equally many rows; those left over, fewer than
        `world_size` and other ones in every shuffled epoch, are read by none.

    Returns
    -------
    (row,) int64
    """
    n_rows = int(bounds[-1])
    if shuffle:
        blocks = _random(_SHARDS, epoch, seed).permutation(len(bounds) - 1)
        sizes = np.diff(bounds)[blocks]
        starts = bounds[:-1][blocks]
        before = np.cumsum(sizes) - sizes
        sequence = np.arange(n_rows, dtype=np.int64) + np.repeat(starts - before, sizes)
    else:
        sequence = np.arange(n_rows, dtype=np.int64)
    share = n_rows // world_size
    piece: Rows = sequence[rank * share : (rank + 1) * share]
    return piece


def worker_share(
    n_rows: int, batch_size: int, *, drop_last: bool, worker: int, n_workers: int
) -> tuple[int, int]:
    """Return the stretch [start, stop) of a rank's rows that one of its workers reads.

    Workers deliver in turn, so batch `i` is of worker ``i % n_workers``, and the one batch that may not
    be full comes last.

    Examples
    --------
    >>> [worker_share(10, 2, drop_last=False, worker=worker, n_workers=2) for worker in (0, 1)]
    [(0, 6), (6, 10)]
    """
    total = n_batches(n_rows, batch_size, drop_last=drop_last)
    lacking = max(0, total * batch_size - n_rows)  # rows that the last batch is short of
    start = stop = 0
    for number in range(worker + 1):
        start = stop
        count = total // n_workers + (number < total % n_workers)
        stop = start + count * batch_size
        if total and number == (total - 1) % n_workers:
            stop -= lacking
    return start, stop


def buffered_order(
    n_rows: int, *, capacity: int, batch_size: int, seed: int, epoch: int, rank: int, worker: int
) -> Rows:
    """Return the order in which rows leave a shuffle buffer, a batch at a time.

    Before batch `k` is drawn the buffer is filled up with the next rows, so that of the first
    ``k * batch_size + capacity`` rows it holds all that have not left yet.

    Parameters
    ----------
    n_rows
        Rows that go through the buffer, in order.
    capacity
        How many it holds, at least `batch_size`.
    batch_size
        How many leave at once.
    seed, epoch, rank, worker
        What the order depends on.

    Returns
    -------
    (row,) int64
        A permutation of the numbers below `n_rows`.
    """
    random = _random(_BUFFER, epoch, rank, worker, seed)
    order = np.empty(n_rows, dtype=np.int64)
    held = np.arange(min(capacity, n_rows), dtype=np.int64)
    came = len(held)
    for start in range(0, n_rows, batch_size):
        count = min(batch_size, n_rows - start)
        drawn = random.choice(len(held), count, replace=False)
        order[start : start + count] = held[drawn]
        coming = min(count, n_rows - came)
        held[drawn[:coming]] = np.arange(came, came + coming)
        came += coming
        if coming < count:
            held = np.delete(held, drawn[coming:])
    return order


def track_batches(
    lengths: NDArray[np.int64],
    *,
    batch_size: int | None,
    chunks_per_batch: int | None,
    shuffle: bool,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Return tracks in batches of about one length.

    Tracks are sorted by length, in random order among those of one length, and cut into batches in that
    order, so that little of a batch is padding. The batches then come in random order.

    Parameters
    ----------
    lengths
        (track,) chunks of each track.
    batch_size
        Most tracks of a batch.
    chunks_per_batch
        Most chunks of a batch, padding included; no track may have more.
    shuffle
        Else tracks of one length keep their order, and the shortest come first.
    seed, epoch
        What the order depends on.

    Returns
    -------
    list of (track,) int64
    """
    random = _random(_TRACKS, epoch, seed)
    ties = random.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    by_length = np.lexsort((ties, lengths))
    batches, start = [], 0
    while start < len(by_length):
        stop = start + _fitting(lengths[by_length[start:]], batch_size, chunks_per_batch)
        batches.append(by_length[start:stop])
        start = stop
    if shuffle:
        return [batches[i] for i in _random(_BATCHES, epoch, seed).permutation(len(batches))]
    return batches


def _fitting(ascending: NDArray[np.int64], batch_size: int | None, chunks: int | None) -> int:
    """Return how many tracks from the first on make one batch."""
    most = len(ascending) if batch_size is None else min(batch_size, len(ascending))
    if chunks is None:
        return most
    # The longest is the last, so the padded size only grows; a track has a chunk, so no more than `chunks`.
    most = min(most, chunks)
    padded = ascending[:most] * np.arange(1, most + 1)
    return int(np.searchsorted(padded, chunks, side="right"))


def window_starts(lengths: NDArray[np.int64], max_chunks: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return where in each track a window of at most `max_chunks` chunks starts, at random.

    Parameters
    ----------
    lengths
        (track,) chunks of each track.
    max_chunks
        Length of the window; shorter tracks start at 0.
    seed, epoch
        What the starts depend on.
    """
    spare = np.maximum(0, lengths - max_chunks)
    starts: NDArray[np.int64] = _random(_WINDOWS, epoch, seed).integers(0, spare, endpoint=True)
    return starts


def interleaved(pieces: Sequence[Sequence[Rows]]) -> list[Rows]:
    """Return the batches of several workers as they are delivered: one of each in turn."""
    most = max((len(piece) for piece in pieces), default=0)
    return [piece[i] for i in range(most) for piece in pieces if i < len(piece)]
