"""What is fitted from cached features, and the readers that feed it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.chunk_reader import ChunkReader
    from training.loader import BatchLoader
    from training.track_reader import TrackReader

__all__ = ["BatchLoader", "ChunkReader", "TrackReader"]

_HOMES = {
    "BatchLoader": "training.loader",
    "ChunkReader": "training.chunk_reader",
    "TrackReader": "training.track_reader",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: torch takes seconds.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
