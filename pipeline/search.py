"""Queries over stored embeddings."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.store.chunk_table import read_chunks
from pipeline.store.stored_feature import as_values

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore

CHUNKS_PER_READ = 4096


def mean_embeddings(
    store: "FeatureStore", feature: str = "embedding"
) -> tuple[list[str], NDArray[np.float32]]:
    """Return each track's embedding, averaged over its chunks by how much music they hold.

    Parameters
    ----------
    store
        An open store.
    feature
        A feature of one vector a chunk.

    Returns
    -------
    track_ids : list of str
    vectors : (track, dimension) float32

    Raises
    ------
    StoreError
        If the feature is not of vectors.
    """
    stored = store[feature]
    if len(stored.row_shape) != 1 or stored.kind == "audio":
        raise StoreError(f"{feature} is {stored.kind}, expected an embedding: one vector a chunk.")
    table = stored.chunks
    # A last chunk that is mostly padding must not count as much as a full one.
    weights = table.valid_frames.astype(np.float32)
    sums = np.zeros((len(table.track_ids), *stored.row_shape), dtype=np.float32)
    for start in range(0, len(table), CHUNKS_PER_READ):
        stop = min(len(table), start + CHUNKS_PER_READ)
        vectors = as_values(read_chunks(stored.rows, table, start, stop))
        np.add.at(sums, table.track[start:stop], vectors * weights[start:stop, None])
    totals = np.bincount(table.track, weights=weights, minlength=len(sums)).astype(np.float32)
    has = totals > 0
    return list(table.track_ids[has]), sums[has] / totals[has, None]


def nearest_tracks(
    store: "FeatureStore", track_id: str, *, feature: str = "embedding", n: int = 3
) -> pd.DataFrame:
    """Return the tracks whose mean embedding is nearest to one track's.

    The collection's mean is taken off first: all embeddings share a large common part, and without
    it every cosine would be close to 1.

    Parameters
    ----------
    store
        An open store.
    track_id
        The track to compare with.
    feature
        A feature of one vector a chunk.
    n
        How many to return.

    Returns
    -------
    DataFrame
        `track_id` and `similarity` (cosine, -1 to 1), most similar first.

    Raises
    ------
    UnknownNameError
        If there is no such track or feature.
    StoreError
        If the track could not be used, or has no such feature yet.
    """
    store.number(track_id)  # an error says why it has no features
    track_ids, vectors = mean_embeddings(store, feature)
    if track_id not in track_ids:
        raise StoreError(f"{track_id} has no {feature} yet. Run `mirstore extract --feature {feature}`.")
    centred = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    units = centred / np.where(norms > 0, norms, 1.0)
    similarity = units @ units[track_ids.index(track_id)]
    ranking = pd.DataFrame({"track_id": track_ids, "similarity": similarity.astype(float)})
    others = ranking[ranking["track_id"] != track_id]
    return others.sort_values("similarity", ascending=False, kind="stable", ignore_index=True).head(n)
