"""The grid's arithmetic, and cutting streams into chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import FeatureInputError
from features.framing import Grid, chunks

GRID = Grid()
SMALL = Grid(sample_rate=1000, hop_length=4, frames_per_chunk=5, min_tail_s=0.006)
S = GRID.chunk_samples


def test_a_chunk_is_29_1_seconds() -> None:
    assert GRID.chunk_samples == 349_696
    assert GRID.chunk_s == pytest.approx(29.1413, abs=1e-4)


@pytest.mark.parametrize(
    ("n_samples", "n_chunks", "last_valid"),
    [
        (0, 0, None),
        (1, 1, 1),
        (255, 1, 1),
        (256, 1, 2),
        (S - 1, 1, 1366),
        (S, 1, 1366),
        (S + 1, 1, 1366),  # a tail of one sample is dropped
        (S + 35_999, 1, 1366),
        (S + 36_000, 2, 141),
        (2 * S - 1, 2, 1366),
        (2 * S, 2, 1366),
    ],
)
def test_chunks_and_valid_frames(n_samples: int, n_chunks: int, last_valid: int | None) -> None:
    valid = GRID.valid_frames(n_samples)
    assert GRID.n_chunks(n_samples) == len(valid) == n_chunks
    if last_valid is not None:
        assert valid[-1] == last_valid
        assert (valid[:-1] == 1366).all()


@given(st.integers(0, 130), st.lists(st.integers(1, 17), min_size=1))
def test_chunks_rebuild_the_stream_however_it_is_cut(n_samples: int, cuts: list[int]) -> None:
    signal = np.arange(1, n_samples + 1, dtype=np.float32)
    blocks, at, turn = [], 0, 0
    while at < n_samples:
        blocks.append(signal[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    got = [(chunk.copy(), filled) for chunk, filled in chunks(blocks, SMALL)]

    assert len(got) == SMALL.n_chunks(n_samples)
    joined = np.concatenate([chunk[:filled] for chunk, filled in got]) if got else signal[:0]
    np.testing.assert_array_equal(joined, signal[: len(joined)])
    dropped = n_samples - len(joined)
    assert dropped < 6
    assert not dropped or len(got) > 0
    for chunk, filled in got:
        assert chunk.shape == (20,)
        assert not chunk[filled:].any()


@given(st.integers(1, 10 * S))
def test_valid_frames_are_librosas_count_up_to_the_dropped_tail(n_samples: int) -> None:
    total = int(GRID.valid_frames(n_samples).sum())
    assert total <= 1 + n_samples // 256
    kept = GRID.n_chunks(n_samples) * S
    if kept >= n_samples and n_samples % S:  # nothing dropped, last chunk partly filled
        assert total == 1 + n_samples // 256


@pytest.mark.parametrize("wrong", [{"hop_length": 0}, {"min_tail_s": -1.0}, {"min_tail_s": 30.0}])
def test_impossible_grids_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(FeatureInputError, match=next(iter(wrong))):
        Grid(**wrong)  # type: ignore[arg-type]
