"""The store: immutable Zarr parts, the Delta Lake index over them, and reading."""
