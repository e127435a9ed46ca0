"""A track's features on one page."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError, StoreWriteError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.store.reading import FeatureStore
    from pipeline.store.stored_feature import StoredFeature

MAX_COLUMNS = 2000
SUFFIXES = (".png", ".pdf", ".svg")


def track_page(store: "FeatureStore", track_id: str) -> "Figure":
    """Draw every feature a track has, one panel each, over the same seconds.

    Parameters
    ----------
    store
        An open store.
    track_id
        ``collection/relative/path.ext``.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot: nothing to close.
    """
    from matplotlib.figure import Figure

    part = str(store.track(track_id)["part"])
    order = {"audio": 0, "log_mel": 1, "mfcc": 2, "cnn": 3}
    has = [feature for feature in (store[name] for name in store) if feature.has_part(part)]
    features = sorted(has, key=lambda feature: order[feature.kind])
    figure = Figure(figsize=(11, 1.2 + 2.0 * len(features)), layout="constrained")
    panels = figure.subplots(len(features), 1, sharex=True, squeeze=False)[:, 0]
    duration = 0.0
    for panel, feature in zip(panels, features, strict=True):
        duration = _draw(panel, store, feature, track_id)
    panels[-1].set_xlabel("time (s)")
    panels[-1].set_xlim(0, duration)
    figure.suptitle(track_id)
    return figure


def _draw(panel: "Axes", store: "FeatureStore", feature: "StoredFeature", track_id: str) -> float:
    grid = store.grid
    duration = (
        min(
            float(store.tracks.loc[track_id, "n_samples"]),
            int(store.tracks.loc[track_id, "n_chunks"]) * grid.chunk_samples,
        )
        / grid.sample_rate
    )
    panel.set_title(f"{feature.name}@{feature.fingerprint}", loc="left", fontsize=9)
    if feature.kind == "audio":
        samples = feature.values(track_id).reshape(-1)[: round(duration * grid.sample_rate)]
        low, high = _extremes(samples)
        seconds = np.linspace(0.0, duration, len(low))
        panel.fill_between(seconds, low, high, linewidth=0, color="C0")
        panel.set_ylabel("amplitude")
        panel.set_ylim(-1.05 * max(1.0, float(high.max())), 1.05 * max(1.0, float(high.max())))
    elif feature.kind == "cnn":
        vectors = feature.values(track_id)
        # What changes from chunk to chunk: most of an embedding is the same for a whole song.
        # Measured on full chunks: the padding of the last would drown the differences between them.
        n_full = max(1, len(vectors) - 1)
        _image(panel, _z_scores(vectors.T, n_reference=n_full), len(vectors) * grid.chunk_s)
        panel.set_ylabel("dimension\n(z-score)")
    else:
        frames = feature.frames(track_id)
        if feature.kind == "mfcc":
            frames = _z_scores(frames[1:])
            panel.set_ylabel("coefficient\n(z-score, from 1)")
        else:
            panel.set_ylabel("mel band")
        _image(panel, _thinned(frames), frames.shape[1] * grid.hop_length / grid.sample_rate)
    return duration


def _image(panel: "Axes", values: NDArray[np.float32], seconds: float) -> None:
    panel.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        extent=(0.0, seconds, 0.0, float(values.shape[0])),
    )


def _z_scores(rows: NDArray[np.float32], *, n_reference: int | None = None) -> NDArray[np.float32]:
    """Rows without their mean, in units of their deviation (of the first columns), within +-3."""
    reference = rows[:, :n_reference]
    spread = np.maximum(reference.std(axis=1, keepdims=True), 1e-6)
    return np.asarray(np.clip((rows - reference.mean(axis=1, keepdims=True)) / spread, -3, 3))


def _thinned(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average neighbouring frames until a page can show them."""
    step = -(-frames.shape[1] // MAX_COLUMNS)
    whole = frames.shape[1] // step * step
    return np.asarray(frames[:, :whole].reshape(frames.shape[0], -1, step).mean(axis=2))


def _extremes(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    step = -(-len(samples) // MAX_COLUMNS)
    starts = np.arange(0, len(samples), step)
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def save_track_page(store: "FeatureStore", track_id: str, output: Path) -> None:
    """Write `track_page` to a file; its ending, ``.png``, ``.pdf`` or ``.svg``, chooses the format.

    Raises
    ------
    UnknownNameError, StoreError
        If there is no such track, it has no features, or the file has another ending.
    StoreWriteError
        If the file cannot be written.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise StoreError(
            f"{output}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )
    figure = track_page(store, track_id)
    try:
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn as boxes; the page is good all the same.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            figure.savefig(output, dpi=110)
    except OSError as error:
        raise StoreWriteError(f"cannot write {output}: {error.strerror}.") from error
