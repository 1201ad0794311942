# Copyright (c) mmpsvit contributors.
"""Names the file when an image cannot be read; skips none."""

import traceback

from mmcv import transforms

from mmpsvit.registry import TRANSFORMS


class DataError(RuntimeError):
    """A data set or one of its files cannot be read, or does not fit the model.

    Args:
        message (str): What is wrong; put on one line.
    """

    def __init__(self, message: str) -> None:
        # PyTorch brings the exception of a data worker over as text: the traceback,
        # whose last line ends in the message.
        if message.startswith(f'Caught {type(self).__name__} in '):
            last = message.rstrip('\n').rsplit('\n', 1)[-1]
            message = last.split(f'{type(self).__name__}: ', 1)[-1]
        super().__init__(' '.join(message.splitlines()))


@TRANSFORMS.register_module()
class LoadImageFromFile(transforms.LoadImageFromFile):
    """MMCV's ``LoadImageFromFile``, which names the file that it cannot read.

    Every such file is an error, also with ``ignore_empty``, with which MMEngine would
    silently take another image in its place.

    Args:
        *args: As for ``mmcv.transforms.LoadImageFromFile``.
        **kwargs: Likewise.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ignore_empty = False

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``.

        Args:
            results (dict): Needs ``img_path``; gets ``img`` (H, W, 3), ``img_shape``
                and ``ori_shape``.

        Raises:
            DataError: If the file is missing, empty, damaged or no image.
        """
        try:
            return super().transform(results)
        # Each storage backend and each decoder has its own errors.
        except Exception as error:
            path, remedy = results['img_path'], ''
            if '\ufeff' in str(path):
                remedy = '; its list begins with a byte-order mark: save it without'
            raise DataError(
                f'image {path} cannot be read ({one_line(error)}){remedy}'
            ) from error


def one_line(error: BaseException) -> str:
    """An exception's type and message, or failed assertion, without line breaks."""
    message = str(error)
    if not message and error.__traceback__:
        message = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return f'{type(error).__name__}: {" ".join(message.split())}'
