"""The exceptions of dynbench."""


class DynbenchError(Exception):
    """Base of all that dynbench raises on purpose."""


class UserError(DynbenchError):
    """Something the user can put right; the message is one sentence that names what was given and what is accepted.

    The command line prints it after `Error:` and ends with exit code 2.
    """
