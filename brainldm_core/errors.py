"""The one error that users see as a single line."""

from __future__ import annotations


class BrainLDMError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2; no traceback.
    """
