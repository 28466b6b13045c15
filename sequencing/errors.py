"""The one exception that scripts turn into a message and exit code 2."""


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, where, and what to do about it."""
