"""The errors a user can meet, each with the exit code the CLI gives it."""


class MobileClipError(Exception):
    """Root of the project's own errors: the work failed (exit code 1)."""

    exit_code = 1


class ConfigError(MobileClipError):
    """A key of params.yaml or an argument is wrong (exit code 2)."""

    exit_code = 2


class DataError(MobileClipError):
    """An input file or folder is missing, empty or unusable (exit code 2)."""

    exit_code = 2


class EmptyError(DataError):
    """A dataset is in order and has none of the samples that are asked for."""


class IntegrityError(MobileClipError):
    """Stored data are damaged or belong to something else (exit code 1)."""


class StorageError(MobileClipError):
    """A disk or an object store refuses to work: full, down, forbidden (exit code 1)."""


class ExportError(MobileClipError):
    """An exported program misses its proof (exit code 1)."""


class GateRefused(MobileClipError):  # noqa: N818 - a refusal is a verdict, not a failure
    """The gate refused a promotion: a normal result with reasons (exit code 3)."""

    exit_code = 3
