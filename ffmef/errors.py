"""Errors that a user caused and can fix, and how messages are put."""


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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, singular or plural.

    >>> counted(1, "bracket"), counted(0, "pair"), counted(2, "process")
    ('1 bracket', '0 pairs', '2 processes')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
