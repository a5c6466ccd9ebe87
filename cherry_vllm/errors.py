"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake the user can mend: one line that names what, where and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
