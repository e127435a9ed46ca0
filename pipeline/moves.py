"""Moves: new tracks that are known ones under another name."""

from collections.abc import Collection

import pandas as pd

# Of several files of one content those belong together whose paths end alike: by so many names first.
_ENDS = (3, 2, 1, 0)
_SAME_FILE = ["uri", "size", "mtime_ns"]


def known_contents(
    scanned: pd.DataFrame, indexed: pd.DataFrame, *, listed: Collection[str]
) -> dict[str, str]:
    """Return the SHA-256 by uri of files that the index knows under a collection of another name.

    Parameters
    ----------
    scanned
        `Scan.tracks`.
    indexed
        The ``tracks`` table.
    listed
        Collections of the catalog.
    """
    others = indexed[~indexed["collection"].isin(list(listed)) & indexed["content_hash"].notna()]
    if not len(others):
        return {}
    same = scanned.merge(others[[*_SAME_FILE, "content_hash"]], on=_SAME_FILE)
    return dict(zip(same["uri"], same["content_hash"], strict=True))


def moves(new: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """Pair new tracks with those of the same content that are not found any more, one to one.

    Parameters
    ----------
    new
        `track_id` and `content`, a SHA-256.
    lost
        `track_id`, `content_hash` and `part`.

    Returns
    -------
    DataFrame
        `index` (in `new`), `old_track_id` and `part`.
    """
    new = new[new["content"].notna()].reset_index()[["index", "track_id", "content"]]
    lost = lost.loc[lost["content_hash"].notna() & lost["part"].notna(), ["track_id", "content_hash", "part"]]
    lost = lost.rename(columns={"track_id": "old_track_id", "content_hash": "content"})
    new, lost = new[new["content"].isin(lost["content"])], lost[lost["content"].isin(new["content"])]
    found = [pd.DataFrame(columns=["index", "old_track_id", "part"])]
    for names in _ENDS:
        left, right = _keyed(new, "track_id", names), _keyed(lost, "old_track_id", names)
        pairs = left.merge(right, on=["content", "end", "turn"])
        if len(pairs):
            found.append(pairs[["index", "old_track_id", "part"]])
        new = new[~new["index"].isin(pairs["index"])]
        lost = lost[~lost["old_track_id"].isin(pairs["old_track_id"])]
    return pd.concat(found, ignore_index=True)


def _keyed(tracks: pd.DataFrame, name: str, names: int) -> pd.DataFrame:
    """Tracks by identifier, with the end of their path and their turn among those of one content and end."""
    tracks = tracks.sort_values(name)
    ends = ["/".join(track_id.split("/")[-names:]) if names else "" for track_id in tracks[name]]
    tracks = tracks.assign(end=ends)
    return tracks.assign(turn=tracks.groupby(["content", "end"]).cumcount())
