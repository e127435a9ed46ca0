"""Compaction: parts that are mostly dead rows are rewritten, small ones merged; bytes are copied as they lie.

Rows are not decompressed: each one's checksum is verified and its bytes go into the new shard. Old parts stay
until ``mirstore gc`` finds that no snapshot that is kept names them, so readers are not disturbed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from pipeline.errors import StoreDamagedError
from pipeline.store.index import Index, writable_index
from pipeline.store.lineage import command_line, provenance
from pipeline.store.parts import PartLayout, new_part_name, part_key
from pipeline.store.places import Place
from pipeline.store.records import ArrayRow, TrackRow, track_rows
from pipeline.store.shard_reader import ShardReader
from pipeline.store.shards import ShardWriter

LEAST_LIVE = 0.7
SMALL_ROWS = 64  # half of what a full job writes
TARGET_ROWS = 256
_KEPT = ("feature", "fingerprint", "kind", "dtype", "row_shape", "parameters", "computed_with")
# Parts made between two commits: a merge into a large index costs seconds, a kill loses what is not committed.
PARTS_A_COMMIT = 32


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did, or would do.

    Parameters
    ----------
    rewritten
        Old parts whose live rows were copied.
    emptied
        Old parts without any live row.
    made
        New parts.
    rows
        Live rows copied.
    dead_rows
        Rows left behind.
    freed_bytes
        What the old parts take more than the new ones; ``mirstore gc`` frees it.
    damage
        One line for each part that cannot be copied; it stays as it is.
    """

    rewritten: int
    emptied: int
    made: int
    rows: int
    dead_rows: int
    freed_bytes: int
    damage: tuple[str, ...] = ()


def parts_table(index: Index) -> pd.DataFrame:
    """Return each part's rows, live rows and bytes.

    Returns
    -------
    DataFrame
        `rows`, `live`, `bytes` and `kind` (which arrays it has, computed with what) by part.
    """
    arrays = index.arrays(["part", "rows", "bytes", "fingerprint", "computed_with"])
    # Numbers for the long texts, of which there are few.
    arrays["kind"] = arrays.groupby(["fingerprint", "computed_with"]).ngroup().astype(str)
    by_part = arrays.sort_values("fingerprint").groupby("part")
    table = by_part.agg(rows=("rows", "max"), bytes=("bytes", "sum"), kind=("kind", " ".join))
    tracks = index.tracks(["part", "n_chunks"])
    live = tracks[tracks["part"].notna()].groupby("part")["n_chunks"].sum()
    table["live"] = live.reindex(table.index).fillna(0).astype("int64")
    return table.astype({"rows": "int64", "bytes": "int64"})


def groups_to_merge(parts: pd.DataFrame, *, least_live: float, small_rows: int) -> list[list[str]]:
    """Return which parts become one: those of one kind that are mostly dead or small, up to a good size.

    A small part with nothing to merge it with is left alone, so that a second compaction finds nothing.

    Parameters
    ----------
    parts
        As `parts_table` gives it, parts without live rows left out.
    least_live
        Share of live rows below which a part is rewritten.
    small_rows
        Live rows below which a part is small.
    """
    dead = parts["live"] < least_live * parts["rows"]
    chosen = parts[dead | (parts["live"] < small_rows)].assign(dead=dead)
    groups: list[list[str]] = []
    # The smallest first: no small one is then left alone beside a large one, for the next compaction to merge.
    for _, alike in chosen.sort_index().sort_values("live", kind="stable").groupby("kind"):
        group: list[str] = []
        rows = 0
        for part, live in alike["live"].items():
            if group and rows + live > TARGET_ROWS:
                groups.append(group)
                group, rows = [], 0
            group.append(str(part))
            rows += live
        groups.append(group)
    return [group for group in groups if len(group) > 1 or chosen.loc[group[0], "dead"]]


def compact(
    place: Place,
    *,
    least_live: float = LEAST_LIVE,
    small_rows: int = SMALL_ROWS,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CompactReport:
    """Rewrite parts with few live rows and merge small ones.

    Parameters
    ----------
    place
        Path or URL of the store, or a catalog.
    least_live
        Share of live rows below which a part is rewritten.
    small_rows
        Live rows below which a part is merged with others.
    dry_run
        Only report.
    on_progress
        Called with groups done and groups in all.

    Returns
    -------
    CompactReport

    Raises
    ------
    StoreLockedError, StoreWriteError
        If the store cannot be written.
    """
    with writable_index(place, command_line("compact")) as index:
        parts = parts_table(index)
        empty = sorted(parts.index[parts["live"] == 0])
        groups = groups_to_merge(parts[parts["live"] > 0], least_live=least_live, small_rows=small_rows)
        merged = [part for group in groups for part in group]
        report = CompactReport(
            rewritten=len(merged),
            emptied=len(empty),
            made=len(groups),
            rows=int(parts.loc[merged, "live"].sum()),
            dead_rows=int((parts["rows"] - parts["live"]).loc[[*merged, *empty]].sum()),
            freed_bytes=int(parts.loc[[*merged, *empty], "bytes"].sum()),
        )
        if dry_run:
            live_bytes = (parts["bytes"] * parts["live"] / parts["rows"]).loc[merged].sum()
            return replace(report, freed_bytes=report.freed_bytes - int(live_bytes))
        return _Compaction(index, groups, empty, on_progress).run(report, parts)


class _Compaction:
    """One compaction under way."""

    def __init__(
        self,
        index: Index,
        groups: Sequence[list[str]],
        empty: Sequence[str],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.index = index
        self.groups = groups
        self.empty = list(empty)
        self.on_progress = on_progress
        self.about = provenance(command_line("compact"))
        parts = [part for group in groups for part in group]
        self.tracks = index.tracks(parts=parts).groupby("part")
        self.arrays = index.arrays(parts=parts).groupby("part")

    def run(self, report: CompactReport, parts: pd.DataFrame) -> CompactReport:
        arrays: list[ArrayRow] = []
        tracks: list[TrackRow] = []
        old: list[str] = list(self.empty)
        damage: list[str] = []
        made_bytes = 0
        for done, group in enumerate(self.groups):
            self.on_progress(done, len(self.groups))
            while group:
                try:
                    new_arrays, new_tracks = self.merged(group)
                    break
                except StoreDamagedError as error:  # it stays as it is; the others are merged
                    damage.append(str(error))
                    bad = [part for part in group if part in str(error)] or group
                    group = [part for part in group if part not in bad]
                    kept = parts.loc[bad]
                    report = replace(
                        report,
                        rewritten=report.rewritten - len(bad),
                        made=report.made - (not group),
                        rows=report.rows - int(kept["live"].sum()),
                        dead_rows=report.dead_rows - int((kept["rows"] - kept["live"]).sum()),
                        freed_bytes=report.freed_bytes - int(kept["bytes"].sum()),
                    )
            if not group:
                continue
            made_bytes += sum(row.bytes for row in new_arrays)
            arrays += new_arrays
            tracks += new_tracks
            old += group
            if len({row.part for row in arrays}) >= PARTS_A_COMMIT:
                self.commit(arrays, tracks, old)
                arrays, tracks, old = [], [], []
        self.commit(arrays, tracks, old)
        self.index.compact(self.about)
        return replace(report, freed_bytes=report.freed_bytes - made_bytes, damage=tuple(damage))

    def commit(self, arrays: list[ArrayRow], tracks: list[TrackRow], old: list[str]) -> None:
        if old:
            names = ", ".join(f"'{part}'" for part in old)
            self.index.commit(
                arrays=arrays, updated=tracks, dropped=f"part IN ({names})", provenance=self.about
            )

    def merged(self, group: Sequence[str]) -> tuple[list[ArrayRow], list[TrackRow]]:
        """Copy the live rows of some parts into a new one; return what the index is to be told."""
        location, grid, new_part = self.index.location, self.index.grid, new_part_name()
        layout = PartLayout(grid)
        spans: list[tuple[str, int, int]] = []
        tracks: list[TrackRow] = []
        for part in group:
            for track in track_rows(self.tracks.get_group(part).sort_values("row_start")):
                start, count = track.row_start or 0, track.n_chunks or 0
                valid_frames = grid.valid_frames(track.n_samples or 0)
                row_start = layout.add_track(track.track_id, valid_frames, track.content_hash)
                spans.append((part, start, count))
                tracks.append(replace(track, part=new_part, row_start=row_start))
        try:
            arrays = list(self.copied(group, spans, new_part))
            layout.write(location, new_part)
            location.sync(part_key(new_part))
        except BaseException:
            location.delete(part_key(new_part))
            raise
        return arrays, tracks

    def copied(
        self, group: Sequence[str], spans: Sequence[tuple[str, int, int]], new_part: str
    ) -> Iterator[ArrayRow]:
        """Copy every array of the parts."""
        location = self.index.location
        names = {
            (part, row["fingerprint"]): row
            for part in group
            for row in self.arrays.get_group(part).to_dict(orient="records")
        }
        for fingerprint in self.arrays.get_group(group[0])["fingerprint"]:
            first = names[group[0], fingerprint]
            array = f"{first['feature']}@{fingerprint}"
            readers = {part: ShardReader(location, part, names[part, fingerprint]["array"]) for part in group}
            key = f"{part_key(new_part)}/{array}"
            writer = ShardWriter(location, key, readers[group[0]].metadata)
            try:
                for part, start, count in spans:
                    self.copy(readers[part], writer, start, start + count)
                writer.finish()
            finally:
                writer.abandon()
            yield ArrayRow(
                part=new_part,
                array=array,
                rows=writer.n_rows,
                bytes=writer.n_bytes,
                **{name: first[name] for name in _KEPT},
            )

    def copy(self, reader: ShardReader, writer: ShardWriter, start: int, stop: int) -> None:
        """Copy rows a few at a time."""
        for first in range(start, stop, 16):
            for number, row in enumerate(reader.encoded(first, min(stop, first + 16)), start=first):
                if row is None:
                    raise StoreDamagedError(f"{reader.name}: row {number} of a track is not there.")
                writer.append_encoded(bytes(row))
