# Copyright (c) mmpsvit contributors.
"""Names the file when an image cannot be read; skips none."""

import traceback

import mmcv
import numpy as np
from mmcv import transforms
from mmengine import fileio

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
    silently take another image in its place. A JPEG that ends too early is one too:
    OpenCV 4.10 and older fill the rest without a word.

    Args:
        *args: As for ``mmcv.transforms.LoadImageFromFile``.
        **kwargs: Likewise.
    """

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``.

        Args:
            results (dict): Needs ``img_path``; gets ``img`` (H, W, 3), ``img_shape``
                and ``ori_shape``.

        Raises:
            DataError: If the file is missing, empty, truncated or no image.
        """
        if self.file_client_args is not None:  # deprecated
            return super().transform(results)
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        # Each storage backend has its own errors.
        except Exception as error:
            remedy = ''
            if '\ufeff' in str(path):
                remedy = '; its list begins with a byte-order mark: save it without'
            raise DataError(
                f'image {path} cannot be read ({one_line(error)}){remedy}'
            ) from error
        if not content:
            raise DataError(f'image {path} is empty (0 bytes)')
        if is_cut_jpeg(content):
            raise DataError(f'image {path} is truncated: the JPEG has no end marker')
        backend = self.imdecode_backend
        reason = ''
        try:
            image = mmcv.imfrombytes(content, flag=self.color_type, backend=backend)
        # Each decoder has its own errors.
        except Exception as error:
            image, reason = None, f' ({one_line(error)})'
        if image is None:
            raise DataError(
                f'image {path} is truncated, damaged or no image that {backend} '
                f'can decode{reason}'
            )
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


def one_line(error: BaseException) -> str:
    """An exception's type and message, or failed assertion, without line breaks."""
    message = str(error)
    if not message and error.__traceback__:
        message = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return f'{type(error).__name__}: {" ".join(message.split())}'


def is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG ends too early.

    Args:
        content (bytes): The whole file; what is no JPEG gives False.
    """
    if not content.startswith(b'\xff\xd8\xff'):
        return False
    # Segment by segment to the pixels: a thumbnail in the header has an end of its own.
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            return False  # an unusual header, for the decoder to judge
        marker = content[position + 1]
        if marker == 0xDA:  # start of scan
            return content.rfind(b'\xff\xd9', position) < 0
        if marker == 0xFF:  # padding
            position += 1
        else:
            size = int.from_bytes(content[position + 2 : position + 4], 'big')
            position += 2 + size
    return True
