# Copyright (c) mmpsvit contributors.
"""Errors in words."""

import re
import traceback


class DataError(RuntimeError):
    """A data set does not fit the model, or does not end."""


def one_line(error: BaseException) -> str:
    """An exception's type and message, or failed assertion, without line breaks."""
    message = str(error)
    # What ends the traceback that is the message of a data worker's error.
    if found := re.search(r'Original Traceback.*\n  File .*?\n(\S.*)', message, re.S):
        return ' '.join(found[1].split())
    if not message and error.__traceback__:
        message = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return f'{type(error).__name__}: {" ".join(message.split())}'
