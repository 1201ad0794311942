# Copyright (c) mmpsvit contributors.
"""Errors in words."""

import traceback


class DataError(RuntimeError):
    """A data set does not fit the model, or does not end."""


def one_line(error: BaseException) -> str:
    """An exception's type and message, or failed assertion, without line breaks."""
    message = str(error)
    if message.startswith('Caught ') and 'in DataLoader worker' in message:
        return message.strip().split('\n')[-1]  # of the worker's traceback
    if not message and error.__traceback__:
        message = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return f'{type(error).__name__}: {" ".join(message.split())}'
