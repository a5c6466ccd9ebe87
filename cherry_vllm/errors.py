"""The exceptions that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can fix: one line that says what, where and how to fix it.

    The command line prints it without a traceback and exits with its code.
    """

    exit_code = 2


class DisagreementError(UserError):
    """The engine's scores are further from the reference's than they may be."""

    exit_code = 1


class DamagedFileError(UserError, ValueError):
    """A file of a run has changed since it was written."""
