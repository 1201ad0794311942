# Copyright (c) mmpsvit contributors.
"""Training, testing and picturing detectors on small COCO folders."""

import json
import re

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from panels import all_panels_have_points
from PIL import Image

from mmpsvit.guard import load_checkpoint


@pytest.fixture
def coco(tmp_path):
    """COCO as it lies on disk, two small images a split; returns overrides for it."""
    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
    rng = np.random.default_rng(0)
    root = tmp_path / 'coco'
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        images, annotations = [], []
        for index, (height, width) in enumerate(((60, 100), (90, 70))):
            name = f'{index:012d}.jpg'
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name)
            images.append(dict(id=index, file_name=name, height=height, width=width))
            x1, y1, x2, y2 = 10, 5, 60, 50
            annotations.append(
                dict(
                    id=index + 1,
                    image_id=index,
                    category_id=index + 1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                    segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
                )
            )
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content))
    options = [
        'train_dataloader.dataset.pipeline.2.scale=(133,80)',
        'train_cfg.max_epochs=1',
        'default_hooks.logger.interval=1',
    ]
    for loader, split in (('train', 'train2017'), ('val', 'val2017'), ('test', None)):
        options += [
            f'{loader}_dataloader.num_workers=0',
            f'{loader}_dataloader.batch_size=1',
            f'{loader}_dataloader.dataset.data_root={root}/',
        ]
        if split != 'train2017':
            name = 'val' if split else 'test'
            options += [
                f'{name}_dataloader.dataset.pipeline.1.scale=(133,80)',
                f'{name}_evaluator.ann_file={root}/annotations/instances_val2017.json',
            ]
    return options


def test_two_processes(root, coco, run_here, run_tool, tmp_path, free_port):
    """A shipped config, as it is, in two processes without a GPU.

    DistributedDataParallel stops in the second step if a parameter is not used.
    """
    config = root / 'configs' / 'mmdet' / 'mask-rcnn_psvit-ti14_fpn_1x_coco.py'
    # Without a threshold, since an untrained network is sure of nothing.
    threshold = 'model.test_cfg.rcnn.score_thr=0.0'
    options = ['--cfg-options', *coco, 'train_cfg.max_epochs=2', threshold]
    output = run_tool(
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        'work',
        *options,
        PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    assert 'GPU number: 2' in output
    assert output.count('starts from scratch') == 1
    assert 'coco/bbox_mAP' in output
    checkpoint = tmp_path / 'work' / 'epoch_2.pth'
    assert 'backbone.cls_token' in load_checkpoint(checkpoint)['state_dict']

    one = run_here('tools/test.py', config, checkpoint, '--work-dir', 'one', *options)
    two = run_tool(
        'tools/dist_test.sh',
        config,
        checkpoint,
        2,
        '--work-dir',
        'two',
        *options,
        PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    scores = [re.findall(r'bbox_mAP_copypaste: (.*)', text) for text in (one, two)]
    assert scores[0] and scores[0] == scores[1]


@pytest.fixture
def digits(root, run_here, tmp_path):
    """Config of the small detector, and overrides for a few scenes of digits."""
    maker = 'tools/dataset_converters/make_cluttered_digits.py'
    sizes = ('--num-train', 8, '--num-val', 4, '--num-clutter', 4)
    run_here(maker, 'digits', '--coco', *sizes)
    folder = tmp_path / 'digits'
    options = [
        '--cfg-options',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'train_dataloader.batch_size=2',
        # An untrained network is sure of nothing.
        'model.test_cfg.score_thr=0.0',
    ]
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.dataset.data_root={folder}/',
            f'{loader}_dataloader.num_workers=0',
        ]
    for name in ('val', 'test'):
        options.append(f'{name}_evaluator.ann_file={folder}/annotations/val.json')
    return root / 'configs' / 'cluttered_digits', options, folder


def test_detector_of_digits_and_its_picture(digits, run_here, tmp_path):
    configs, options, folder = digits
    config = configs / 'retinanet_psvit.py'
    output = run_here('tools/train.py', config, '--work-dir', 'work', *options)
    assert 'coco/bbox_mAP_50' in output
    assert 'starts from scratch' in output
    output = run_here(
        'tools/visualization/vis_sampling.py',
        config,
        tmp_path / 'work' / 'iter_2.pth',
        folder / 'val',
        '--out',
        'points.png',
        *options,
    )
    assert '4 images drawn' in output
    assert all_panels_have_points(tmp_path / 'points.png', 1, 4)


def test_mistakes_are_told_in_one_line(digits, run_here, tmp_path):
    folder, options, _ = digits
    config = folder / 'retinanet_psvit.py'
    wrong = [*options, 'model.backbone.out_type=cls_token']
    output = run_here('tools/train.py', config, *wrong, code=1)
    last = output.strip().split('\n')[-1]
    assert last.startswith('train.py: error: AssertionError')
    assert "if the next part takes maps, set 'featmap'" in last
    assert 'Traceback' not in output

    state = {'backbone.norm.weight': torch.ones(3), 'backbone.odd': torch.ones(1)}
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    wrong = [
        *options,
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={tmp_path}/other.pth',
        'model.backbone.init_cfg.prefix=backbone.',
    ]
    output = run_here('tools/train.py', config, *wrong, code=1)
    last = output.strip().split('\n')[-1]
    assert 'train.py: error: ' in last
    assert 'no weight of the checkpoint fits PSViT: it has norm.weight, odd' in last
