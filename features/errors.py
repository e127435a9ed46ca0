"""Errors of mirstore's signal and array mathematics.

`MirstoreError` is the base of every error the project raises on purpose; `pipeline.errors` and
`training.errors` derive from it too. All of them survive pickling, because Dask carries them
between processes.
"""


class MirstoreError(Exception):
    """Base of all expected errors: the message says what was expected, what was got, and what to do."""


class FeatureInputError(MirstoreError, ValueError):
    """An array or a parameter handed to a feature function does not fit; mend the call."""


class WeightsError(MirstoreError):
    """A weights file is missing, damaged or of another network; mend or replace the file."""
