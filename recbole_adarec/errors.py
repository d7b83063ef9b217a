"""The exception for input that cannot be used."""


class AdaRecError(Exception):
    """Raised for input that cannot be used.

    The message is one line. It names what is wrong, where it is, and what would be right. The command line prints it on
    stderr and exits with code 2.
    """
