"""Taking away: tracks that have gone, tracks that are to be forgotten, versions of features."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pandas as pd

from pipeline.errors import AudioError, StoreError, UnknownNameError, did_you_mean
from pipeline.remote_files import content_hash
from pipeline.store.erasures import FORGOTTEN, complete_erasures, erasures, name_hash, new_erasure
from pipeline.store.index import writable_index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.places import Place, catalog_at
from pipeline.store.reading import check_collection
from pipeline.store.tracks_ever import ForgottenTrack, TracksEver
from pipeline.store.versions import models_by_feature

# A collection that lost more of its tracks than this is not pruned unasked.
MOST = 0.5


@dataclass(frozen=True, slots=True)
class Pruned:
    """What ``mirstore prune`` removed.

    Parameters
    ----------
    tracks, failed_files
        Identifiers, sorted; failed files have no features.
    unlisted
        Number of tracks that stay by collection, of collections that the catalog does not have.
    """

    tracks: tuple[str, ...]
    failed_files: tuple[str, ...]
    unlisted: dict[str, int] = field(default_factory=dict)


def prune(place: Place, *, collection: str | None = None, dry_run: bool = False) -> Pruned:
    """Remove the tracks that have gone from their collections; older snapshots still have them.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    collection
        Only of this collection, even if that is all it has; None for all. Of a collection that the catalog does
        not have, if `place` is one, all tracks are removed.
    dry_run
        Only report.

    Returns
    -------
    Pruned
        Identifiers. The bytes of the tracks go with ``mirstore compact`` and ``mirstore gc``.

    Raises
    ------
    UnknownNameError
        If there is no such collection.
    StoreError
        If a collection would lose most of its tracks and was not named; then nothing is removed. A dry run is
        refused alike.
    StoreLockedError, StoreWriteError
        If the store cannot be written.
    """
    catalog = catalog_at(place)
    with writable_index(place, command_line("prune")) as index:
        rows = index.tracks(["track_id", "collection", "status", "part"])
        gone = rows["status"] == "gone"
        if collection is not None:
            check_collection(index.location, collection, rows["collection"])
            own = rows["collection"] == collection
            gone = own if catalog is not None and collection not in catalog.collections else gone & own
        elif refusal := _refusal(rows):
            raise StoreError(refusal)
        placed = rows["part"].notna()
        tracks, failed = (tuple(sorted(rows.loc[gone & those, "track_id"])) for those in (placed, ~placed))
        if (tracks or failed) and not dry_run:
            index.commit(
                removed=[*tracks, *failed],
                provenance=provenance(command_line("prune")),
                counts={"removed": len(tracks), "failed_files_removed": len(failed)},
            )
    stay = rows.loc[placed & ~gone, "collection"].value_counts().sort_index()
    listed = stay.index if catalog is None else list(catalog.collections)
    unlisted = {str(name): int(n) for name, n in stay[~stay.index.isin(listed)].items()}
    return Pruned(tracks, failed, unlisted)


def _refusal(rows: pd.DataFrame) -> str:
    """Why tracks that have gone are not removed: a missing disk looks like a collection that was emptied."""
    placed = rows[rows["part"].notna()]
    had = placed["collection"].value_counts().sort_index()
    lost = (
        placed.loc[placed["status"] == "gone", "collection"].value_counts().reindex(had.index, fill_value=0)
    )
    most = lost[lost > MOST * had]
    if not len(most):
        return ""
    told = " and ".join(_told(name, n, had[name]) for name, n in most.items())
    options = ", ".join(f"`--collection {name}`" for name in most.index)
    return (
        f"prune would remove {told}, and removes nothing until such a collection is named. If that is meant, use "
        f"{options}{', one at a time' if len(most) > 1 else ''}; else bring the music back and run "
        "`mirstore extract`."
    )


def _told(collection: object, lost: int, had: int) -> str:
    if lost < had:
        return f"{lost:,} of the {had:,} tracks of {collection}"
    return f"all {had:,} tracks of {collection}" if had > 1 else f"the only track of {collection}"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What ``mirstore forget`` did: of each track, and how many chunks of how many parts in all."""

    tracks: tuple[ForgottenTrack, ...]
    chunks: int
    parts: int


def forget(place: Place, track_ids: Sequence[str], *, dry_run: bool = False) -> Forgotten:
    """Delete tracks for good: their rows in every part, in every snapshot.

    The next extraction leaves their files alone, and copies of them under any name, until `allow` is called.
    Their names and labels stay in the tables of older snapshots until ``mirstore gc`` removes these.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    track_ids
        Identifiers.
    dry_run
        Only report.

    Returns
    -------
    Forgotten

    Raises
    ------
    UnknownNameError
        If the store has no such track, nor had in a snapshot that is kept; then nothing is forgotten.
    StoreLockedError, StoreWriteError, StoreDamagedError
        If the store cannot be written, or a shard's index cannot be read; the next command that writes does
        what is left, once the shard is mended.
    """
    with writable_index(place, "mirstore forget") as index:
        past = TracksEver(index, set(track_ids))
        past.check()
        found = [past.of(name) for name in sorted(past.wanted)]
        if not dry_run:
            new_erasure(past.spans, {name: past.contents(name) for name in sorted(past.wanted)}).write(
                index.location
            )
            complete_erasures(index)
    return Forgotten(
        tuple(found),
        sum(span.n_chunks for span in past.spans),
        len({span.part for span in past.spans}),
    )


def allow(place: Place, track_ids: Sequence[str]) -> None:
    """Let the next extraction take forgotten tracks again, as new ones, and copies of them.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    track_ids
        Identifiers, of tracks that were forgotten or of files that are left alone as copies of one.

    Raises
    ------
    UnknownNameError
        If one of them was not forgotten.
    """
    with writable_index(place, "mirstore forget --allow") as index:
        recorded = erasures(index.location)
        rows = index.tracks(["track_id", "uri", "content_hash", "stage", "part"])
        copies = rows[rows["track_id"].isin(list(track_ids)) & rows["stage"].eq(FORGOTTEN)]
        blocked = {name for erasure in recorded for name in erasure.blocked}
        for name in track_ids:
            if name_hash(name) not in blocked and name not in set(copies["track_id"]):
                raise UnknownNameError(f"{name!r} was not forgotten in {index.location}.")
        names = {name_hash(name) for name in track_ids}
        has_features = copies["part"].notna()
        contents = set(copies.loc[~has_features, "content_hash"])
        for uri in copies.loc[has_features, "uri"]:  # the row has the hash of what these are of
            with suppress(OSError, AudioError):
                contents.add(content_hash(uri))
        for erasure in recorded:
            contents.update(*(erasure.contents.get(name, ()) for name in names))
        for erasure in recorded:
            left = {
                name: kept
                for name, found in erasure.contents.items()
                if (kept := tuple(content for content in found if content not in contents))
            }
            allowed = replace(
                erasure,
                blocked=tuple(name for name in erasure.blocked if name not in names),
                contents=left,
            )
            if allowed != erasure:
                allowed.write(index.location)


def drop(
    place: Place,
    version: str,
    *,
    wanted: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
) -> tuple[str, str, int]:
    """Drop one version of a feature; its bytes go with ``mirstore gc``.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    version
        ``feature@fingerprint``.
    wanted
        Fingerprints that the catalog asks for.
    force
        Drop it even if the catalog asks for it or models use it.
    dry_run
        Only report, or refuse.

    Returns
    -------
    feature, fingerprint : str
    bytes : int

    Raises
    ------
    UnknownNameError
        If the store has no such version.
    StoreError
        If it is in use, or all that some tracks have.
    """
    name, _, fingerprint = version.partition("@")
    with writable_index(place, command_line("drop")) as index:
        arrays = index.arrays(["part", "feature", "fingerprint", "bytes"])
        versions = sorted(set(arrays["feature"] + "@" + arrays["fingerprint"]))
        if not fingerprint or version not in versions:
            matching = [known for known in versions if known.partition("@")[0] == name]
            hint = f" It has {', '.join(matching)}." if matching else did_you_mean(version, versions)
            raise UnknownNameError(f"{index.location} has no version {version!r}.{hint}")
        if fingerprint in wanted and not force:
            raise StoreError(
                f"{version} is what the catalog asks for, and the next extraction would compute it again. "
                "Take it out of the catalog, or use --force."
            )
        models = models_by_feature(index.location)[0].get(fingerprint)
        if models and not force:
            raise StoreError(f"{version} is used by {', '.join(models)}. Remove these first, or use --force.")
        others = set(arrays.loc[arrays["fingerprint"] != fingerprint, "part"])
        tracks = index.tracks(["part"])["part"].dropna()
        alone = int((~tracks.isin(others)).sum())
        if alone:
            raise StoreError(
                f"{version} is all that {'one track has' if alone == 1 else f'{alone:,} tracks have'}. "
                "Extract another version first, or `prune` or `forget` the tracks."
            )
        size = int(arrays.loc[arrays["fingerprint"] == fingerprint, "bytes"].sum())
        if not dry_run:
            index.commit(
                dropped=f"fingerprint = '{fingerprint}'",
                provenance=provenance(command_line(f"drop {version}")),
            )
    return name, fingerprint, size
