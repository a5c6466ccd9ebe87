"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can fix: one line that says what, where and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class DamagedFileError(UserError, ValueError):
    """A file of a run has changed since it was written."""
