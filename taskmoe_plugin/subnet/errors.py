"""What can go wrong with a checkpoint, a dictionary or a disk."""

from __future__ import annotations


class SubnetError(Exception):
    """Something a user can put right; its text is one line that names the file or flag and says what to do."""
