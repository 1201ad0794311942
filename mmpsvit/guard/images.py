# Copyright (c) mmpsvit contributors.
"""Names the file when an image cannot be read or prepared; skips none."""

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import Compose

# The long side over the short one. Tests resize the short side: to 256 px, an image of
# 10000 x 1 px would take 43 s and 7 GB (measured), one of 10000 x 10 px 2 s and 0.7 GB.
MAX_SIDE_RATIO = 1000


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


def one_line(error: Exception) -> str:
    """An exception's type and message without line breaks."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def is_cut_jpeg(content: bytes) -> bool:
    """Whether a JPEG ends too early. OpenCV 4.10 fills the rest without a word.

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


class CheckedLoadImage(LoadImageFromFile):
    """Loading an image file, or a :class:`DataError` that names it.

    Takes the place of MMCV's transform in every data set of this package's tools.
    ``ignore_empty``, with which another image takes a broken one's place, is ignored.
    """

    @classmethod
    def like(cls, stock: LoadImageFromFile) -> 'CheckedLoadImage':
        """The same transform with checks."""
        checked = cls()
        checked.__dict__.update(stock.__dict__)
        return checked

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``.

        Args:
            results (dict): Needs ``img_path``; gets ``img`` (H, W, 3), ``img_shape``
                and ``ori_shape``.

        Raises:
            DataError: If the file is missing, empty, truncated or no image, or if one
                side is more than ``MAX_SIDE_RATIO`` times as long as the other.
        """
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        # Each storage backend has its own errors.
        except Exception as error:
            raise DataError(
                f'image {path} cannot be read ({one_line(error)})'
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
        height, width = image.shape[:2]
        if max(height, width) > MAX_SIDE_RATIO * min(height, width):
            raise DataError(
                f'image {path} is {width} x {height} px: one side must be at most '
                f'{MAX_SIDE_RATIO} times as long as the other'
            )
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = (height, width)
        return results


class CheckedPipeline(Compose):
    """A pipeline whose every error names the image.

    Args:
        pipeline (Compose): The pipeline whose transforms this one applies.
    """

    def __init__(self, pipeline: Compose) -> None:
        super().__init__(
            CheckedLoadImage.like(step)
            # A subclass, or the deprecated file client, keeps its own way of reading.
            if type(step) is LoadImageFromFile and step.file_client_args is None
            else step
            for step in pipeline.transforms
        )

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms one after the other.

        Args:
            data (dict): A sample of a data set.

        Returns:
            dict | None: The prepared sample, or None if a transform other than loading
            finds it unfit, such as a detector's crop without a box.

        Raises:
            DataError: If a transform fails, or loading gives nothing.
        """
        path = data.get('img_path')
        sample = f'sample {data.get("sample_idx")}' if path is None else f'image {path}'
        for step in self.transforms:
            name = type(step).__name__
            try:
                data = step(data)
            except DataError:
                raise
            # A transform may fail in any way.
            except Exception as error:
                raise DataError(
                    f'{sample}: {name} failed ({one_line(error)})'
                ) from error
            if data is None:
                if isinstance(step, LoadImageFromFile):
                    raise DataError(f'{sample}: {name} loaded nothing')
                return None
        return data
