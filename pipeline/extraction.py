"""Extraction: from a catalog to a store that has every feature of every track.

One song's way: scan -> plan -> (in a worker: decode -> chunks -> features -> part) -> commit.
Only this process commits, so no two writers ever meet in the index.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.downloads import PUBLISHED, downloaded
from pipeline.absences import absence_reasons
from pipeline.catalog import Catalog, load_catalog
from pipeline.collections import Scan, scan
from pipeline.definitions import CnnDefinition, Feature
from pipeline.errors import (
    AudioError,
    CatalogError,
    ClusterError,
    MissingGuardError,
    StoreDamagedError,
    UnknownNameError,
    did_you_mean,
)
from pipeline.moves import known_contents
from pipeline.planning import INDEXED_COLUMNS, Action, Plan, files_to_hash, plan, wanted_features
from pipeline.remote_files import content_hash
from pipeline.reports import ExtractReport, Progress
from pipeline.run import Run
from pipeline.store.erasures import blocked_contents, blocked_hashes, name_hash
from pipeline.store.index import Index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.location import FORMAT_FILE, location_of

JOB_TIMEOUT_S = 1800.0


def plan_extraction(
    catalog: Catalog | str | Path,
    *,
    collections: Sequence[str] = (),
    features: Sequence[str] = (),
    retry_failed: bool = False,
) -> Plan:
    """Return what `extract` would do, without doing it.

    Parameters
    ----------
    catalog
        A catalog or the path of one.
    collections, features
        Names; empty for all. A feature brings what it is computed from.
    retry_failed
        Try failed files again though they have not changed.

    Returns
    -------
    Plan

    Raises
    ------
    CatalogError, UnknownNameError
        If the catalog or a name is wrong.
    StoreFormatError, StoreDamagedError
        If there is a store that cannot be read.
    """
    catalog = catalog if isinstance(catalog, Catalog) else load_catalog(catalog)
    store = location_of(catalog.store)
    resolved = _resolved(catalog, features)
    grid = resolved[0].grid
    index = Index.open_or_none(store, grid)
    scanned = scan(catalog, only=collections or None)
    return _planned(catalog, scanned, index, resolved, collections=collections, retry_failed=retry_failed)


def _resolved(catalog: Catalog, names: Sequence[str]) -> tuple[Feature, ...]:
    features = catalog.resolved_features()
    for name in names:
        if name not in features:
            raise UnknownNameError(
                f"there is no feature {name!r} in the catalog.{did_you_mean(name, features)}"
            )
    return wanted_features(features, names)


def _planned(
    catalog: Catalog,
    scanned: Scan,
    index: Index | None,
    features: tuple[Feature, ...],
    *,
    collections: Sequence[str],
    retry_failed: bool,
) -> Plan:
    blocked = blocked_hashes(index.location) if index else set()
    if blocked:  # forgotten tracks stay so until they are allowed again
        scanned = replace(
            scanned,
            tracks=_without(scanned.tracks, blocked),
            problems=_without(scanned.problems, blocked),
        )
    indexed = index.tracks(INDEXED_COLUMNS) if index else Index.no_tracks()
    arrays = index.arrays(["part", "fingerprint"]) if index else Index.no_arrays()
    hashes = known_contents(scanned.tracks, indexed, listed=catalog.collections)
    for uri in files_to_hash(scanned.tracks, indexed):
        if uri in hashes:
            continue
        try:
            hashes[uri] = content_hash(uri)
        except (OSError, AudioError):
            continue  # extraction will meet it and say why
    todo = plan(
        scanned.tracks,
        scanned.problems,
        indexed,
        arrays,
        features,
        collections=list(collections or catalog.collections),
        listed=list(catalog.collections),
        hashes=hashes,
        forgotten=blocked_contents(index.location) if index else (),
        retry_failed=retry_failed,
    )
    gone = todo.of(Action.MARK_GONE)
    if len(gone):
        reasons = absence_reasons(gone, catalog, todo.emptied)
        todo.tracks.loc[gone.index, "reason"] = pd.Series(reasons, index=gone.index, dtype=object)
    return todo


def _without(scanned: pd.DataFrame, blocked: set[str]) -> pd.DataFrame:
    forgotten = np.array([name_hash(name) in blocked for name in scanned["track_id"]], dtype=bool)
    return scanned[~forgotten].reset_index(drop=True)


def _fetch_weights(features: Iterable[Feature]) -> None:
    """Fetch published weights once, before workers do; those of a scheduler, maybe elsewhere, fetch their own."""
    names = {f.definition.weights for f in features if isinstance(f.definition, CnnDefinition)}
    for name in sorted(names & set(PUBLISHED)):
        downloaded(PUBLISHED[name])


def extract(
    catalog: Catalog | str | Path,
    *,
    collections: Sequence[str] = (),
    features: Sequence[str] = (),
    workers: int | None = None,
    scheduler: str | None = None,
    job_timeout_s: float = JOB_TIMEOUT_S,
    retry_failed: bool = False,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_refused: Callable[[str, str], None] = lambda _address, _reason: None,
) -> ExtractReport:
    """Bring the store up to date with the catalog.

    A broken song becomes a row of ``store.failures``. A kill at any moment loses the jobs in flight and what
    ended since the last commit, which is at most ten times as long ago as that one took; the next call goes on
    from there.

    Parameters
    ----------
    catalog
        A catalog or the path of one.
    collections, features
        Names; empty for all. A feature brings what it is computed from.
    workers
        Worker processes; None is one a core.
    scheduler
        Address of a running Dask scheduler to use instead.
    job_timeout_s
        Seconds a job of some songs may take; then its worker is ended and the song that took so long fails.
    retry_failed
        Try failed files again though they have not changed.
    on_plan, on_progress
        Called with the plan once, and with the progress some times a second.
    on_refused
        Called with address and reason of each worker of `scheduler` that is not used.

    Returns
    -------
    ExtractReport

    Raises
    ------
    CatalogError, UnknownNameError
        If the catalog or a name is wrong.
    StoreLockedError
        If another command is writing to the store.
    StoreFormatError, StoreDamagedError, StoreWriteError
        If the store cannot be used.
    ClusterError
        If the scheduler cannot be used, or a script calls this while it is imported.
    WeightsError
        If published weights are needed and cannot be downloaded.
    """
    begun = time.monotonic()
    if getattr(
        multiprocessing.current_process(), "_inheriting", False
    ):  # a worker that imports its main script
        raise MissingGuardError
    if workers is not None and scheduler is not None:
        raise ClusterError(
            "workers counts processes of this machine; leave it out where a scheduler is named."
        )
    catalog = catalog if isinstance(catalog, Catalog) else load_catalog(catalog)
    store = location_of(catalog.store)
    resolved = _resolved(catalog, features)
    if not catalog.collections:
        raise CatalogError(f"{catalog.path}: collections is empty. Name a folder of audio files there.")
    command = command_line("extract")
    # Before a store is made: a wrong folder makes none, nor do weights that cannot be had.
    scanned = scan(catalog, only=collections or None)
    if scheduler is None and len(scanned.tracks) and not store.exists(FORMAT_FILE):
        _fetch_weights(resolved)
    with store.lock(command) as lock:
        index = Index.open_or_create(store, resolved[0].grid)
        index.lock = lock
        index.recover()
        todo = _planned(catalog, scanned, index, resolved, collections=collections, retry_failed=retry_failed)
        if scheduler is None:
            _fetch_weights(todo.to_compute)
        on_plan(todo)
        versions = {feature.name: feature.fingerprint for feature in resolved}
        about = provenance(command, catalog=catalog.hash) | {"features": json.dumps(versions)}
        run = Run(index, todo, about, begun, on_progress, on_refused)
        run.commit_row_changes()
        if len(todo.of(Action.EXTRACT)) or len(todo.parts):
            run.execute(store, workers=workers, scheduler=scheduler, job_timeout_s=job_timeout_s)
        index.compact(about)
        if run.damage:
            raise StoreDamagedError("\n".join([*run.damage, "Everything else is done."]))
        return run.report()
