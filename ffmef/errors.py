"""Errors that a user caused and can fix."""


class InputError(ValueError):
    """A file, option or value from outside that cannot be used.

    The message is one line: what, why, and the value. The command line prints it and exits with status 2.
    """


def printable(text: str) -> str:
    """Return text as one printable line: file names may hold line breaks and more.

    >>> printable("two\\nlines \\ud800 \u00fc")
    'two\\\\nlines \\\\ud800 \u00fc'
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
