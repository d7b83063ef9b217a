"""The one exception that users are meant to see."""


class AdaRecError(Exception):
    """Input that cannot be used: the message is one line that names what is wrong, where, and what would be right.

    The command line prints it on stderr and exits with code 2.
    """
