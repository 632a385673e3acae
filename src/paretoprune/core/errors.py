"""Every error that paretoprune raises on purpose.

A message says what was given, what is wrong and what to do. `exit_status` is what the command line returns.
"""

from __future__ import annotations


class PruneError(Exception):
    """Base of every error raised on purpose."""

    exit_status = 1


class UsageError(PruneError):
    """An argument, a recipe key or a plug-in reference that cannot be used as given."""

    exit_status = 2


class LimitError(UsageError):
    """A limit that cannot be read, contradicts another, or cannot be met."""


class UnreachableLimitError(LimitError):
    """A well-formed limit that no candidate can meet; the message names the nearest reachable value."""

    exit_status = 3


class ModelError(UsageError):
    """The given network cannot be worked on: NaN weights, nothing to prune, parameters on several devices."""


class CaptureError(ModelError):
    """The network could not be captured as a graph, for instance for a branch that depends on the data."""


class DataError(UsageError):
    """Batches that are empty, of the wrong shape, labelled out of range, or readable only once."""


class PlanError(UsageError):
    """A plan or ratio that does not fit the network: an unknown axis, a width below its floor."""


class SurgeryError(PruneError):
    """The pruned network disagrees with the dead-channel reference, or the comparison proved nothing."""


class TargetError(PruneError):
    """A runtime cannot export, load or run the network."""


class MeterError(PruneError):
    """An energy meter that does not answer, or whose readings cannot be true."""


class ExportMismatchError(TargetError):
    """The exported file disagrees with the model it came from; the message gives the largest error."""


class FileError(UsageError):
    """A file that is missing, truncated, altered, of a newer schema, or that points outside its folder."""


class StoreError(PruneError):
    """The run folder cannot be used: read-only, locked by another process, full, or made for another search."""

    exit_status = 4


class AllCandidatesFailedError(PruneError):
    """No candidate could be finished; the message groups the causes by count."""

    exit_status = 5
