"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake of the user: the program prints the message as one line on stderr and exits with code 2.

    The message says what is wrong, what would be right, and where to look.
    """


class Unwritable(UserError):
    """The disk is full, or does not take files; nothing half-written is left."""


class Unsupported(Exception):
    """The method cannot serve this model's structure. A recorded outcome with its reason, not a failure."""


class OutOfReach(ValueError):
    """The requested ratio lies beyond what the method can remove from this model. The user's mistake."""


class CheckpointError(UserError, ValueError):
    """A folder of a model cannot be written, or is not what it says it is."""


def first_line(error: BaseException) -> str:
    """An exception as one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
