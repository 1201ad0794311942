# Copyright (c) mmpsvit contributors.
"""Training, testing, resuming and picturing on small folders."""

import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from panels import all_panels_have_points
from PIL import Image

from mmpsvit.guard import load_checkpoint


def test_train_test_resume_picture(small, training, trained, run_here, tmp_path):
    config, options, folder = small
    (log,) = training.glob('*/*.log')
    assert 'Iter(val) [1/1]' in log.read_text()
    assert (training / 'last_checkpoint').read_text() == str(training / 'iter_4.pth')

    # Resuming goes on after step 4.
    more = [*options, 'train_cfg.max_iters=6']
    for arguments in (('work', '--resume'), ('two', '--resume', trained)):
        output = run_here('tools/train.py', config, '--work-dir', *arguments, *more)
        assert re.findall(r'Iter\(train\) \[(\d)/6\]', output) == ['5', '6']

    # Metrics and predictions agree.
    common = ('tools/test.py', config, trained, '--work-dir', 'test')
    run_here(*common, '--out', 'out/metrics.json', *options)
    top1 = json.loads((tmp_path / 'out' / 'metrics.json').read_text())['accuracy/top1']
    run_here(*common, '--out', 'out/predictions.pkl', *options)
    predictions = pickle.loads((tmp_path / 'out' / 'predictions.pkl').read_bytes())
    assert len(predictions) == 12
    right = [int(p['pred_label'] == p['gt_label']) for p in predictions]
    assert top1 == pytest.approx(100 * np.mean(right))
    # No temporary file is left.
    assert sorted(os.listdir(tmp_path / 'out')) == ['metrics.json', 'predictions.pkl']

    # Flip averaging: the mean of the scores of each image and its mirror image.
    run_here(*common, '--tta', '--out', 'tta.pkl', *options)
    averaged = pickle.loads((tmp_path / 'tta.pkl').read_bytes())
    for path in folder.glob('val/*/*.png'):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    run_here(*common, '--out', 'flipped.pkl', *options)
    flipped = pickle.loads((tmp_path / 'flipped.pkl').read_bytes())
    for one, mirror, mean in zip(predictions, flipped, averaged, strict=True):
        expected = (one['pred_score'] + mirror['pred_score']) / 2
        torch.testing.assert_close(mean['pred_score'], expected, atol=1e-5, rtol=0)


def test_picture(small, trained, run_here, run_tool, tmp_path):
    config, options, folder = small
    arguments = ('tools/visualization/vis_sampling.py', config, trained)
    output = run_here(*arguments, folder / 'val', '--out', 'pictures/all.png', *options)
    assert '8 images drawn' in output
    assert all_panels_have_points(tmp_path / 'pictures' / 'all.png', 2, 4)

    (image, *_) = folder.glob('val/*/*.png')
    output = run_tool(*arguments, image, '--out', 'one.pdf', *options)
    assert '1 images drawn' in output
    assert (tmp_path / 'one.pdf').stat().st_size > 1000


def test_two_processes_train_and_test_as_one(small, run_tool, tmp_path, free_port):
    """The same six images a step, on one process or three on each of two.

    The images to test, 11, are not divided evenly.
    """
    config, options, images = small
    (tmp_path / 'double_precision.py').write_text(
        'import torch\n\ntorch.set_default_dtype(torch.float64)\n'
    )
    (tmp_path / 'double.py').write_text(
        f'_base_ = {str(config)!r}\n'
        "custom_imports = dict(imports=['double_precision'])\n"
    )
    training = [
        *options,
        'train_cfg.max_iters=20',
        'default_hooks.checkpoint.interval=10',
        # BatchNorm's statistics are per process.
        'model.backbone.norm_eval=True',
        # Adam would blow rounding errors of small gradients up to whole steps.
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=0.1',
        'param_scheduler=None',
    ]
    arguments = ('double.py', '--no-validate', '--work-dir')
    env = dict(PYTHONPATH=str(tmp_path), CUDA_VISIBLE_DEVICES='')
    run_tool('tools/train.py', *arguments, 'one', *training, **env)
    arguments = ('double.py', 2, *arguments[1:], 'a folder', *training)
    half = 'train_dataloader.batch_size=3'
    ranks = dict(env, PORT=free_port)
    output = run_tool('tools/dist_train.sh', *arguments, half, **ranks)
    assert 'GPU number: 2' in output
    checkpoint = tmp_path / 'a folder' / 'iter_20.pth'
    middle, one, two = (
        load_checkpoint(tmp_path / path)['state_dict']
        for path in ('one/iter_10.pth', 'one/iter_20.pth', checkpoint)
    )
    key = 'head.layers.head.weight'
    assert one[key].dtype == torch.float64
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-9, rtol=0, msg=name)
    # They have not stood still.
    assert (middle[key] - one[key]).abs().max() > 1e-3

    # Not all are right: else one that counts twice would make no difference.
    shutil.copy(images / 'val/circle/0.png', images / 'val/star/0.png')
    options += ['test_dataloader.dataset.indices=11', 'test_dataloader.batch_size=2']
    arguments = (config, checkpoint, 2, '--out', 'two.json', *options)
    run_tool('tools/dist_test.sh', *arguments, **ranks)
    two = json.loads((tmp_path / 'two.json').read_text())
    run_tool('tools/test.py', config, checkpoint, '--out', 'one.json', *options)
    assert two == json.loads((tmp_path / 'one.json').read_text())
    assert 0 < two['accuracy/top1'] < 100


def test_loss_that_is_no_number(small, run_here, tmp_path):
    config, options, _ = small
    options = [*options, 'optim_wrapper.optimizer.lr=1e30']
    output = run_here('tools/train.py', config, '--work-dir', 'work', *options, code=1)
    assert 'train.py: error: the loss of iteration 2 is not finite; there is' in output
    assert 'Traceback' not in output
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_resume_in_a_folder_that_has_moved(small, trained, run_here, tmp_path):
    config, options, _ = small
    (tmp_path / 'work').rename(tmp_path / 'moved')
    more = [*options, 'train_cfg.max_iters=6']
    run_here('tools/train.py', config, '--work-dir', 'moved', '--resume', *more)
    assert (tmp_path / 'moved' / 'iter_6.pth').is_file()
    (tmp_path / 'moved' / 'iter_6.pth').unlink()
    output = run_here(
        'tools/train.py', config, '--work-dir', 'moved', '--resume', *more, code=1
    )
    assert 'error: checkpoint ' in output and 'iter_6.pth does not exist' in output
    assert 'Traceback' not in output


def test_resume_keeps_load_from_until_there_is_something(small, trained, run_here):
    config, options, _ = small
    start = f'load_from={trained}'
    arguments = ('tools/train.py', config, '--work-dir', 'second', '--resume')
    output = run_here(*arguments, *options, start)
    assert 'Load checkpoint from' in output
    assert re.findall(r'Iter\(train\) \[(\d)/4\]', output) == ['1', '2', '3', '4']
    more = [*options, start, 'train_cfg.max_iters=5']
    output = run_here(*arguments, *more)
    assert re.findall(r'Iter\(train\) \[(\d)/5\]', output) == ['5']


def test_imagenet_config_in_two_processes(root, run_tool, tmp_path, free_port):
    """`tools/dist_train.sh configs/psvit/b14.py 2` on a tree of 1000 class folders."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for index in range(1000):
            folder = tmp_path / 'imagenet' / split / f'n{index:08d}'
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((100, 80))
            image.save(folder / f'{folder.name}_1.JPEG')
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    for loader, count in (('train', 12), ('val', 5)):
        options += [
            f'{loader}_dataloader.dataset.data_root={tmp_path / "imagenet"}',
            f'{loader}_dataloader.dataset.indices={count}',
            f'{loader}_dataloader.batch_size=3',
            f'{loader}_dataloader.num_workers=0',
        ]
    config = root / 'configs' / 'psvit' / 'b14.py'
    arguments = ('tools/dist_train.sh', config, 2, '--work-dir', 'work')
    output = run_tool(
        *arguments,
        '--auto-scale-lr',
        '--cfg-options',
        *options,
        PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    assert 'Epoch(train) [1][2/2]' in output
    assert 'accuracy/top5' in output
    # 2 x 3 images instead of 512: the learning rate is scaled by 6 / 512.
    assert 'Scaling the original LR by 0.01171875' in output
    assert 'ema_state_dict' in load_checkpoint(tmp_path / 'work' / 'epoch_1.pth')
