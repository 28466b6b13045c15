"""The one exception that scripts turn into a message and exit code 2."""


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, where, and what to do about it."""


class Failure(Exception):
    """What went wrong through no fault of the user: the script tells it in one message and ends with exit code 1."""
