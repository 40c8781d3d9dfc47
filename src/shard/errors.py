"""Errors that a user can cause: one line that says what, where, and what to do."""


class ShardError(Exception):
    """Something outside the code is wrong; the command line prints the message and exits with 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # What is quoted (a key, a value, another library's words) may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


class UsageError(ShardError):
    """The arguments, the recipe or a --set is invalid; found before any work, exits with 2."""

    exit_code = 2
