"""Stores of known rows, written without audio."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from features.framing import Grid
from pipeline import FeatureStore
from pipeline.definitions import AudioDefinition, LogMelDefinition, resolve
from pipeline.store.index import Index
from pipeline.store.lineage import provenance
from pipeline.store.location import location_of
from pipeline.store.parts import PartWriter
from pipeline.store.records import TrackRow


def written_store(
    folder: Path,
    parts: Sequence[Sequence[int]],
    *,
    frames_per_chunk: int = 8,
    n_mels: int = 4,
    with_logmel: int | None = None,
    only: str | None = None,
) -> FeatureStore:
    """A store of random rows: for each part, the number of chunks of each of its tracks.

    Track ``made/000`` is the last written, so that stored order is not that of identifiers. Only the first
    `with_logmel` parts have log-mel; `only` one feature is written, if named.
    """
    grid = Grid(frames_per_chunk=frames_per_chunk, min_tail_s=0.0)
    definitions = {
        "audio": AudioDefinition(kind="audio"),
        "logmel": LogMelDefinition.model_validate({"kind": "log_mel", "from": "audio", "n_mels": n_mels}),
    }
    resolved = resolve(definitions, grid)
    features = [resolved[only]] if only else list(resolved.values())
    index = Index.create(folder, grid)
    rng = np.random.default_rng(0)
    number = sum(map(len, parts))
    for i, lengths in enumerate(parts):
        tracks, written = [], features if with_logmel is None or i < with_logmel else features[:1]
        computed = {feature.name: "{}" for feature in written}
        with PartWriter(location_of(folder), written, computed) as writer:
            for length in lengths:
                number -= 1
                n_samples = int(length * grid.chunk_samples - rng.integers(0, grid.chunk_samples))
                for _ in range(length):
                    for feature in written:
                        values = rng.standard_normal(feature.row_shape) * (
                            1 if feature.scale is None else 9e3
                        )
                        writer.append(feature.name, values.astype(feature.dtype))
                track_id = f"made/{number:03}"
                first = writer.add_track(track_id, grid.valid_frames(n_samples))
                tracks.append(
                    TrackRow(
                        track_id, "made", track_id, 1, 1, "ok", n_samples=n_samples, part=writer.part,
                        row_start=first, n_chunks=length,
                        labels=json.dumps({"mood": number % 3, "valence": number / 7, "genre": "folk"}),
                    )
                )  # fmt: skip
            arrays = writer.finish()
        index.commit(arrays=arrays, added=tracks, provenance=provenance("test"))
    return FeatureStore(folder)


@pytest.fixture(scope="session")
def known_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """50 tracks, 622 chunks, three parts, the first of three shards; not to be changed."""
    rng = np.random.default_rng(1)
    parts = [rng.integers(1, 30, 40).tolist(), [1, 2, 3], [5, 9, 3, 1, 1, 2, 4]]
    return written_store(tmp_path_factory.mktemp("known") / "store", parts)


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    """Maker of a store of one's own."""
    return lambda parts, **how: written_store(tmp_path / "store", parts, **how)
