"""The format file of a store: by which version of mirstore it can be read, and on which grid it is."""

import json
from dataclasses import asdict, dataclass

from features.errors import FeatureInputError
from features.framing import Grid
from pipeline.errors import StoreDamagedError, StoreFormatError, StoreMissingError
from pipeline.store.location import FORMAT_FILE, Location

FORMAT = 2


@dataclass(frozen=True, slots=True)
class StoreFormat:
    """What a store's format file says.

    Parameters
    ----------
    version
        Format number.
    grid
        Sample rate, hop and chunk length of every array.
    oldest_snapshot
        Snapshots before this one have lost parts to ``mirstore gc``.
    """

    version: int
    grid: Grid
    oldest_snapshot: int = 0

    def write(self, location: Location) -> None:
        """Write it, atomically."""
        content = {"format": self.version, "grid": asdict(self.grid), "oldest_snapshot": self.oldest_snapshot}
        location.write(FORMAT_FILE, json.dumps(content, indent=1).encode())


def read_format(location: Location) -> StoreFormat:
    """Return what a store's format file says, after checking that this mirstore can read it.

    Raises
    ------
    StoreMissingError
        If there is no store.
    StoreFormatError
        If a newer mirstore wrote it.
    StoreDamagedError
        If its format file cannot be understood.
    """
    try:
        content = json.loads(location.read(FORMAT_FILE))
        version = int(content["format"])
        if version > FORMAT:
            raise StoreFormatError(
                f"{location} has format {version}, this mirstore reads up to {FORMAT}. "
                "Install a newer mirstore."
            )
        return StoreFormat(version, Grid(**content["grid"]), int(content.get("oldest_snapshot", 0)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMissingError(
            f"{location} holds no store. Run `mirstore extract` or correct the path."
        ) from error
    except (ValueError, KeyError, TypeError, FeatureInputError) as error:
        raise StoreDamagedError(
            f"{location}/{FORMAT_FILE}: not a store's format file ({error}). Restore it from a backup."
        ) from error
