"""What a model is to predict of each track: columns of the store, or a table of one's own."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError, did_you_mean
from training.errors import TargetError

if TYPE_CHECKING:
    from pipeline.store.reading import FeatureStore

_WHOLE = (bool, int, np.bool_, np.integer)
_NUMBER = (*_WHOLE, float, np.floating)


def track_targets(
    store: "FeatureStore", targets: Any, track_ids: "pd.Index[str]", needed: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the targets of tracks.

    Parameters
    ----------
    store
        Its `tracks` have the columns.
    targets
        Name of a column, names of columns, or a Series or DataFrame by `track_id`.
    track_ids
        All tracks.
    needed
        Numbers of those that must have targets.

    Returns
    -------
    (track,) or (track, column)
        int64 if all of it is whole numbers or truth values, else float32; 0 for tracks that are not needed.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    TargetError
        If a target is missing or no number.
    """
    if not isinstance(targets, pd.Series | pd.DataFrame):
        names = [targets] if isinstance(targets, str) else list(targets)
        columns = store.tracks.columns
        for name in names:
            if name not in columns:
                raise UnknownNameError(f"tracks have no column {name!r}.{did_you_mean(name, columns)}")
        targets = store.tracks[targets if isinstance(targets, str) else names]
    if not targets.index.is_unique:
        twice = targets.index[targets.index.duplicated()][0]
        raise TargetError(f"{twice}: has several targets, expected one row a track.")
    frame = targets.to_frame() if isinstance(targets, pd.Series) else targets
    frame = frame.reindex(track_ids[needed])
    columns = [_numbers(frame[name]) for name in frame.columns]
    dtype = np.int64 if all(column.dtype == np.int64 for column in columns) else np.float32
    values = np.zeros((len(track_ids), len(columns)), dtype=dtype)
    values[needed] = np.stack(columns, axis=1)
    return values[:, 0] if isinstance(targets, pd.Series) else values


def _numbers(column: "pd.Series[Any]") -> NDArray[Any]:
    missing = column.isna()
    if missing.any():
        raise TargetError(
            f"{missing.idxmax()}: has no target {column.name!r} ({int(missing.sum())} tracks lack it). "
            "Complete the labels, or select the tracks that have it."
        )
    kind = column.dtype
    # A column that has gaps elsewhere holds its numbers as objects.
    values = column.tolist() if pd.api.types.is_object_dtype(kind) else []
    if not (pd.api.types.is_numeric_dtype(kind) or (values and all(isinstance(v, _NUMBER) for v in values))):
        raise TargetError(
            f"target {column.name!r} is not of numbers ({column.iloc[0]!r} for {column.index[0]}). "
            "Hand over codes, such as those of pandas.factorize, as a Series by track_id."
        )
    whole = pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind)
    if whole or (values and all(isinstance(v, _WHOLE) for v in values)):
        counts: NDArray[np.int64] = column.to_numpy(dtype=np.int64)
        return counts
    numbers: NDArray[np.float32] = column.to_numpy(dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise TargetError(f"{column.index[~np.isfinite(numbers)][0]}: target {column.name!r} is infinite.")
    return numbers
