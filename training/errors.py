"""Errors of training, grouped by what the one who meets them can do."""

from features.errors import MirstoreError


class ReaderError(MirstoreError, ValueError):
    """A reader was asked for something that cannot be; mend the call."""


class TargetError(MirstoreError, ValueError):
    """A track lacks a target, or it is no number; complete the labels or select other tracks."""


class ReaderStateError(MirstoreError):
    """A saved state belongs to other data or settings; make the reader as it was."""
