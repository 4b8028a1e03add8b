"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake of the user: the program prints the message as one line on stderr and exits with code 2.

    The message says what is wrong, what would be right, and where to look.
    """
