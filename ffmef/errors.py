"""Errors that a user caused and can fix."""


class InputError(ValueError):
    """A file, option or value from outside that cannot be used.

    The message is one line: what, why, and the value. The command line prints it and exits with status 2.
    """
