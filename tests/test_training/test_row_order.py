"""Orders of reading: every row once, the same for the same seed, resumed anywhere."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.row_order import (
    buffered_order,
    epoch_sequence,
    interleaved,
    n_batches,
    track_batches,
    window_starts,
    worker_share,
)

BLOCKS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def bounds_of(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@given(
    sizes=BLOCKS,
    shuffle=st.booleans(),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 99),
    world=st.integers(1, 5),
)
def test_ranks_share_each_row_once(
    sizes: list[int], shuffle: bool, seed: int, epoch: int, world: int
) -> None:
    bounds = bounds_of(sizes)
    pieces = [
        epoch_sequence(bounds, shuffle=shuffle, seed=seed, epoch=epoch, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert len({len(piece) for piece in pieces}) == 1
    rows = np.concatenate(pieces)
    assert len(np.unique(rows)) == len(rows) > bounds[-1] - world
    assert ((rows >= 0) & (rows < bounds[-1])).all()
    # Rows follow each other but at the borders of blocks: a shard is read from start to end.
    jumps = rows[1:][np.diff(rows) != 1]
    assert np.isin(jumps, bounds[:-1]).all()
    assert shuffle or (np.diff(rows) == 1).all()


@given(
    n_rows=st.integers(0, 200),
    batch_size=st.integers(1, 20),
    drop_last=st.booleans(),
    n_workers=st.integers(1, 6),
)
def test_workers_share_a_rank_and_batches_come_in_turn(
    n_rows: int, batch_size: int, drop_last: bool, n_workers: int
) -> None:
    shares = [
        worker_share(n_rows, batch_size, drop_last=drop_last, worker=worker, n_workers=n_workers)
        for worker in range(n_workers)
    ]
    total = n_batches(n_rows, batch_size, drop_last=drop_last)
    assert shares[0][0] == 0
    assert all(this[1] == following[0] for this, following in itertools.pairwise(shares))
    assert shares[-1][1] == (total * batch_size if drop_last else n_rows)
    batches = [
        [np.arange(first, min(stop, first + batch_size)) for first in range(start, stop, batch_size)]
        for start, stop in shares
    ]
    for worker, own in enumerate(batches):
        assert len(own) == len(range(worker, total, n_workers))
    delivered = interleaved(batches)
    assert [len(batch) for batch in delivered[:-1]] == [batch_size] * max(0, total - 1)


@given(
    n_rows=st.integers(0, 300),
    batch_size=st.integers(1, 20),
    spare=st.integers(0, 60),
    seed=st.integers(0, 2**63),
)
def test_the_buffer_gives_each_row_once_and_never_holds_too_many(
    n_rows: int, batch_size: int, spare: int, seed: int
) -> None:
    capacity = batch_size + spare
    how = {"capacity": capacity, "batch_size": batch_size, "epoch": 2, "rank": 0, "worker": 1}
    order = buffered_order(n_rows, seed=seed, **how)
    assert sorted(order.tolist()) == list(range(n_rows))
    assert (order == buffered_order(n_rows, seed=seed, **how)).all()
    came = 0
    for left in range(0, n_rows, batch_size):  # what must have come in for this batch, less what has left
        came = max(came, int(order[left : left + batch_size].max()) + 1)
        assert came - left <= capacity


def test_other_seeds_epochs_ranks_and_workers_are_other_orders() -> None:
    usual = {"seed": 1, "epoch": 1, "rank": 1, "worker": 1}
    variants = [usual, *({**usual, name: 2} for name in usual), {**usual, "seed": 2**40}]
    orders = [buffered_order(500, capacity=100, batch_size=8, **variant).tobytes() for variant in variants]
    assert len(set(orders)) == len(orders)
    bounds = bounds_of([4] * 30)
    of_seed = {
        epoch_sequence(bounds, shuffle=True, seed=seed, epoch=epoch, rank=0, world_size=1).tobytes()
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(of_seed) == 25


def test_rows_of_a_shard_end_up_spread() -> None:
    """16 shards of 256 rows through a buffer of 8 shards' rows, batches of 32."""
    bounds = bounds_of([256] * 16)
    sequence = epoch_sequence(bounds, shuffle=True, seed=3, epoch=0, rank=0, world_size=1)
    order = sequence[buffered_order(4096, capacity=2048, batch_size=32, seed=3, epoch=0, rank=0, worker=0)]
    shard = order // 256
    distinct = [len(set(batch.tolist())) for batch in shard.reshape(-1, 32)]
    # 32 independent draws of 16 shards show 16 * (1 - (15 / 16) ** 32) = 14.0 of them on average; the
    # first batches can show at most the 8 that are in the buffer.
    assert np.mean(distinct) > 9.0
    assert min(distinct) > 3
    # Without a buffer neighbours stay neighbours; here the next row is as good as any other.
    followed = np.mean(np.diff(order) == 1)
    assert followed < 0.002
    place = np.empty(4096, dtype=np.int64)
    place[order] = np.arange(4096)
    assert np.median(place.reshape(16, 256).std(axis=1)) > 300


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    batch_size=st.none() | st.integers(1, 9),
    chunks=st.none() | st.integers(12, 40),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_batches_of_tracks_hold_each_once_within_their_limits(
    lengths: list[int], batch_size: int | None, chunks: int | None, shuffle: bool, epoch: int
) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    how = {"batch_size": batch_size, "chunks_per_batch": chunks, "shuffle": shuffle, "seed": 5}
    batches = track_batches(sizes, epoch=epoch, **how)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert batch_size is None or len(batch) <= batch_size
        assert chunks is None or len(batch) * sizes[batch].max() <= chunks
    # However they are mixed, every epoch has the same batches by length: all ranks' counts agree for good.
    first = track_batches(sizes, epoch=0, **how)
    assert sorted(sorted(sizes[batch]) for batch in batches) == sorted(
        sorted(sizes[batch]) for batch in first
    )
    # Bucketed: of two batches, one's longest is at most the other's shortest.
    spans = sorted((int(sizes[batch].min()), int(sizes[batch].max())) for batch in batches)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), most=st.integers(1, 20))
def test_windows_lie_in_their_tracks(lengths: list[int], most: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    starts = window_starts(sizes, most, seed=0, epoch=0)
    assert (starts >= 0).all()
    assert (starts + np.minimum(sizes, most) <= sizes).all()


def test_windows_reach_both_ends_and_change_with_the_epoch() -> None:
    sizes = np.full(400, 7)
    starts = [window_starts(sizes, 4, seed=0, epoch=epoch) for epoch in (0, 1)]
    assert set(starts[0].tolist()) == {0, 1, 2, 3}
    assert (starts[0] != starts[1]).any()


def test_no_rows_make_no_batches() -> None:
    assert len(buffered_order(0, capacity=4, batch_size=2, seed=0, epoch=0, rank=0, worker=0)) == 0
    assert interleaved([]) == []
