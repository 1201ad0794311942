# Copyright (c) mmpsvit contributors.
"""After a failure, the file that caused it is found."""

from pathlib import Path

import cv2
import pytest
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from mmpsvit.cli.diagnosis import find_data_fault

LOAD = LoadImageFromFile(imdecode_backend='pillow')


class Images(BaseDataset):
    """All images of a folder."""

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=str(p)) for p in sorted(Path(self.data_root).iterdir())]


class Picky(BaseTransform):
    """Takes no image of a certain name."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def transform(self, results: dict) -> dict:
        if Path(results['img_path']).name == self.name:
            raise ValueError('I do not like\nthis one')
        return results


class Nothing(BaseModel):
    """Learns nothing, and may fail itself."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.fails = fails

    def forward(self, mode: str, **inputs):
        if self.fails:
            raise RuntimeError('shapes do not match')
        return dict(loss=self.layer.weight.sum()) if mode == 'loss' else [{}]


class Metric(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return {}


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / 'images'
    path.mkdir()
    for number in range(8):
        cv2.imwrite(str(path / f'{number}.png'), 255 * (cv2.UMat(4, 4, 16).get() > 0))
    return path


def fault_of(
    folder: Path,
    kind: str,
    workers: int,
    name: str | None = None,
    match: str | None = None,
    **model,
) -> str | None:
    """Run a training or test that fails; what made it fail."""
    dataset = Images(data_root=str(folder), pipeline=[LOAD, Picky(name)])
    dataset = ConcatDataset([dataset, dataset])
    dataset.metainfo = {}
    endless = kind == 'iterations'
    sampler = (InfiniteSampler if endless else DefaultSampler)(dataset, seed=1)
    loader = DataLoader(
        dataset,
        2,
        sampler=sampler,
        num_workers=workers,
        collate_fn=lambda batch: {},
        persistent_workers=workers > 0,
    )
    runner = Runner(
        Nothing(**model),
        work_dir=str(folder.parent / 'work'),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=20)
        if endless
        else dict(by_epoch=True, max_epochs=3),
        test_dataloader=loader,
        test_evaluator=[Metric()],
        test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=f'diagnosis_{folder}_{kind}',
        log_level='ERROR',
    )
    with pytest.raises(Exception, match=match) as caught:
        runner.test() if kind == 'test' else runner.train()
    fault = find_data_fault(caught.value)
    if workers:  # the garbage collector would wait for them for seconds
        loader._iterator._shutdown_workers()
    return fault


def test_unreadable_image(folder):
    (folder / '5.png').write_bytes(b'')
    fault = fault_of(folder, 'epochs', 0)
    expected = f'image {folder}/5.png: LoadImageFromFile failed (UnidentifiedImage'
    assert fault.startswith(expected)


@pytest.mark.parametrize(
    ('kind', 'workers'),
    [('epochs', 0), ('epochs', 2), ('iterations', 2), ('test', 0), ('test', 2)],
)
def test_failing_transform(kind, workers, folder):
    fault = fault_of(folder, kind, workers, '6.png')
    assert fault == (
        f'image {folder}/6.png: Picky failed (ValueError: I do not like this one)'
    )


def test_fault_of_the_model_is_none_of_the_data(folder):
    match = 'shapes do not match'
    assert fault_of(folder, 'epochs', 0, match=match, fails=True) is None


def test_data_set_that_cannot_be_built(tmp_path):
    dataset = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path / 'no'))
    with pytest.raises(FileNotFoundError) as caught:
        Runner.build_dataloader(dict(dataset=dataset, sampler=None))
    fault = find_data_fault(caught.value)
    assert fault.startswith(
        f"data set CustomDataset(data_root='{tmp_path}/no') cannot be read "
        '(FileNotFoundError: '
    )
    assert '\n' not in fault
