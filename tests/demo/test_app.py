# Copyright (c) mmpsvit contributors.
"""What the demo page does behind the browser: networks, images, messages."""

import importlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
from PIL import Image
from scripts import Malicious

from mmpsvit.visualization import explain, heat_map

pytest.importorskip('gradio', reason='the page needs gradio: pip install -e .[app]')

CONFIG = 'configs/cluttered_digits/psvit.py'
CHECKPOINT = 'work_dirs/demo/iter_2.pth'


@pytest.fixture
def demo(root, monkeypatch):
    """Import a module of the demo."""
    monkeypatch.syspath_prepend(str(root / 'demo'))
    return importlib.import_module


@pytest.fixture
def looker(demo, checkout):
    return demo('looker').Looker(root=checkout)


def test_starts_with_what_make_demo_left(demo, looker, checkout):
    assert looker.config == CONFIG
    assert looker.checkpoint == CHECKPOINT
    assert looker.checkpoints() == [CHECKPOINT]
    configs = looker.configs()
    assert configs[0] == CONFIG and configs.count(CONFIG) == 1
    assert 'configs/psvit/b14.py' in configs
    assert not any('_base_' in name or 'mmdet' in name for name in configs)
    assert [Path(path).name for path in looker.examples()] == [
        '000000.png',
        '000001.png',
    ]
    # The demo's checkpoint belongs to the demo's config.
    other = str(checkout / 'configs' / 'psvit' / 'ti14.py')
    assert demo('looker').Looker(config=other, root=checkout).checkpoint is None


def test_looks_as_the_inferencer_does(looker, checkout):
    image = looker.examples()[0]
    look = looker.look(image, CONFIG, CHECKPOINT)
    np.testing.assert_array_equal(look.image, np.asarray(Image.open(image)))
    # 6 x 6 points on 48 x 40 pixels, iteration 1 on the grid, and moving.
    assert look.trajectory.shape == (4, 36, 2)
    x, y = look.trajectory[0, 0]
    assert 0 < x < 8 and 0 < y < 40 / 6
    assert np.abs(look.trajectory[3] - look.trajectory[0]).max() > 0.5

    cfg = Config.fromfile(checkout / CONFIG)
    inferencer = ImageClassificationInferencer(
        cfg, pretrained=str(checkout / CHECKPOINT), device='cpu'
    )
    (expected,) = inferencer(image)
    scores = expected['pred_scores']
    best = np.argsort(-scores)[:5]
    np.testing.assert_allclose([*look.scores.values()], scores[best], rtol=1e-4)
    names = [name.split()[0] for name in look.scores]
    assert names == [inferencer.classes[label] for label in best]


def test_number_of_points_is_chosen(looker, checkout):
    """As with a config of that number; unchosen, and afterwards, the config's own."""
    image = looker.examples()[0]
    own = looker.look(image, CONFIG, CHECKPOINT)
    nine = looker.look(image, CONFIG, CHECKPOINT, 9)
    assert (own.num_points, nine.num_points) == (6, 9)
    assert nine.trajectory.shape == (4, 81, 2) and nine.scores != own.scores
    points = 'model = dict(backbone=dict(sampler=dict({})))\n'
    base = "_base_ = 'cluttered_digits/psvit.py'\n"
    (checkout / 'configs' / 'n9.py').write_text(base + points.format('num_points=9'))
    expected = looker.look(image, 'configs/n9.py', CHECKPOINT)
    assert nine.scores == pytest.approx(expected.scores)
    assert looker.look(image, CONFIG, CHECKPOINT).scores == own.scores

    for text, count in (
        ('num_points=None, point_stride=8', 6 * 5),
        ('num_points=(3, 4)', 12),
        ('num_points=30', 900),
    ):
        (checkout / 'configs' / 'fixed.py').write_text(base + points.format(text))
        look = looker.look(image, 'configs/fixed.py', CHECKPOINT, 9)
        assert look.num_points is None and look.trajectory.shape == (4, count, 2)


def test_heat_is_at_the_points(demo, looker, checkout):
    look = looker.look(looker.examples()[0], CONFIG, CHECKPOINT)
    assert look.heat.shape == look.image.shape[:2]
    network = demo('looker').load_network(
        checkout / CONFIG, checkout / CHECKPOINT, CHECKPOINT, 'cpu'
    )
    data = network.model.data_preprocessor(
        dict(inputs=[torch.tensor(look.image).permute(2, 0, 1).flip(0)])
    )
    explained = explain(network.model, data['inputs'])
    np.testing.assert_allclose(explained.trajectory[0], look.trajectory)
    maps = heat_map(
        explained.heat, explained.trajectory[:, -1], look.image.shape[:2], (6, 6)
    )
    np.testing.assert_allclose(look.heat, maps[0], rtol=1e-5)
    # They stay there, whatever the switch for the drift.
    drifting = look._replace(trajectory=look.trajectory + 5 * np.eye(4, 2)[:, None])
    draw = partial(demo('app').draw, drifting, 4, True)
    np.testing.assert_array_equal(draw(heat=True, relative=True), draw(heat=True))

    (checkout / 'configs' / 'mean.py').write_text(
        "_base_ = 'cluttered_digits/psvit.py'\n"
        "model = dict(backbone=dict(out_type='avg_featmap', with_cls_token=False))\n"
    )
    looks = looker.look(looker.examples()[0], 'configs/mean.py', CHECKPOINT)
    assert looks.heat is None and demo('app').draw(looks, 0, True, True).any()


def test_names_that_repeat_get_their_numbers(demo):
    names = demo('looker').distinct([9, 1, 8], [*'01234567', 'crane', 'crane'])
    assert list(names) == ['crane (9)', '1', 'crane (8)']


def test_network_of_grey_arrays(looker, checkout):
    """As of MNIST: it sees the file in grey."""
    config, checkpoint = 'configs/grey.py', 'work_dirs/grey.pth'
    (checkout / config).write_text(
        "_base_ = 'cluttered_digits/psvit.py'\n"
        'model = dict(backbone=dict(in_channels=1))\n'
        'data_preprocessor = dict(mean=[120.0], std=[60.0], to_rgb=False)\n'
        "pipeline = [dict(type='PackInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    loaded = torch.load(checkout / CHECKPOINT)
    key = 'backbone.stem.conv1.weight'
    loaded['state_dict'][key] = loaded['state_dict'][key][:, :1].clone()
    torch.save(loaded, checkout / checkpoint)
    image = looker.examples()[0]
    look = looker.look(image, config, checkpoint)
    grey = np.asarray(Image.open(image).convert('L'))
    np.testing.assert_array_equal(look.image, np.stack([grey] * 3, axis=-1))


def test_photos_are_turned_and_shrunk(looker, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new('RGB', (2048, 512), 'red').save(tmp_path / 'photo.jpg', exif=exif)
    look = looker.look(str(tmp_path / 'photo.jpg'), CONFIG, CHECKPOINT)
    assert look.image.shape == (1024, 256, 3)
    assert look.image[..., 0].min() > 200 > 50 > look.image[..., 2].max()


def test_what_is_not_decoded(demo, looker, tmp_path):
    """No decoder gets a file that could announce another size than it has."""
    large = Image.new('1', (10000, 6000))
    large.save(tmp_path / 'large.png')
    Image.new('RGB', (64, 64)).save(tmp_path / 'image.tif')
    Image.new('RGB', (64, 64)).save(tmp_path / 'tiff_inside.png', format='TIFF')
    Image.new('RGB', (2000, 10)).save(tmp_path / 'thin.png')
    for name, message in {
        'large.png': 'large.png has 10000 x 6000 pixels, allowed are 50,000,000.',
        'image.tif': 'image.tif cannot be read as an image (JPEG, PNG, WEBP, BMP).',
        'tiff_inside.png': 'tiff_inside.png cannot be read as an image',
        'thin.png': 'thin.png is too narrow',
    }.items():
        with pytest.raises(demo('looker').LookError) as raised:
            looker.look(str(tmp_path / name), CONFIG, CHECKPOINT)
        assert message in str(raised.value)


def test_the_pipeline_never_gets_the_upload(demo, tmp_path):
    """It reads a file that was written from the decoded pixels."""
    read = []

    def pipeline(path: Path) -> dict:
        image = Image.open(path)
        read.append((path, image.format, np.asarray(image)))
        return {}

    network = demo('looker').Network(None, [], pipeline, None)
    upload = tmp_path / 'mine.bmp'
    Image.new('RGB', (64, 48), (200, 100, 50)).save(upload)
    demo('looker').pack_image(network, str(upload))
    ((path, kind, pixels),) = read
    assert kind == 'PNG' and path != upload
    assert (pixels == (200, 100, 50)).all()


def test_grey_images_of_16_bits(demo, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / 'grey.png')
    image = np.asarray(demo('looker').decode(str(tmp_path / 'grey.png')))
    assert (image == ramp >> 8).all()


def test_replaced_checkpoint_is_loaded_again(looker, checkout):
    image = looker.examples()[0]
    before = looker.look(image, CONFIG, CHECKPOINT)
    loaded = torch.load(checkout / CHECKPOINT)
    loaded['state_dict']['head.layers.head.bias'][3] += 100
    torch.save(loaded, checkout / CHECKPOINT)
    os.utime(checkout / CHECKPOINT, (0, 0))
    after = looker.look(image, CONFIG, CHECKPOINT)
    assert next(iter(after.scores.items())) == ('3', pytest.approx(1))
    assert before.scores != after.scores


def test_mistakes_are_told_in_one_sentence(demo, looker, checkout, tmp_path):
    trap = tmp_path / 'executed'

    works = checkout / 'work_dirs'
    image = looker.examples()[0]
    torch.save(dict(state_dict=Malicious(trap)), works / 'strange.pth')
    (works / 'damaged.pth').write_bytes(b'no zip')
    torch.save([1, 2], works / 'list.pth')
    (works / 'secret.py').write_text(f'import os\nos.mkdir({str(trap)!r})\n')
    (checkout / 'configs' / 'broken.py').write_text('model = dict(\n')
    text = tmp_path / 'text.png'
    text.write_text('no image')
    empty = tmp_path / 'empty.png'
    empty.write_bytes(b'')
    cut = tmp_path / 'cut.png'
    cut.write_bytes(Path(image).read_bytes()[:2000])
    line = tmp_path / 'line.png'
    Image.new('RGB', (3000, 1)).save(line)
    ti14 = 'configs/psvit/ti14.py'
    for arguments, expected in (
        ((image, CONFIG, None), 'There is no checkpoint: run `make demo` first'),
        ((image, CONFIG, 'work_dirs/no.pth'), 'The checkpoint work_dirs/no.pth does'),
        (
            (image, CONFIG, str(text)),
            'is not below work_dirs/; start the page with --c',
        ),
        ((image, CONFIG, 'work_dirs/../../x.pth'), 'is not below work_dirs/'),
        ((image, CONFIG, '~nosuchuser/x.pth'), "'~nosuchuser/x.pth' is no path."),
        ((image, CONFIG, 'work_dirs/\0'), 'is no path.'),
        ((str(line), CONFIG, CHECKPOINT), 'line.png is too narrow: one side must be'),
        ((image, CONFIG, 'work_dirs/strange.pth'), 'strange.pth is refused'),
        ((image, CONFIG, 'work_dirs/damaged.pth'), 'damaged.pth '),
        ((image, CONFIG, 'work_dirs/list.pth'), 'list.pth holds a list, no weights'),
        ((image, ti14, CHECKPOINT), f'{CHECKPOINT} does not fit the config: '),
        ((image, 'configs/no.py', CHECKPOINT), 'The config configs/no.py does not'),
        ((image, 'configs/broken.py', CHECKPOINT), 'config broken.py cannot be used'),
        ((image, 'work_dirs/secret.py', CHECKPOINT), 'is not below configs/'),
        ((image, '', CHECKPOINT), 'is not below configs/'),
        ((str(text), CONFIG, CHECKPOINT), 'text.png cannot be read as an image'),
        ((str(empty), CONFIG, CHECKPOINT), 'empty.png cannot be read as an image'),
        ((str(cut), CONFIG, CHECKPOINT), 'cut.png cannot be read as an image'),
    ):
        with pytest.raises(demo('looker').LookError) as raised:
            looker.look(*arguments)
        told = str(raised.value)
        assert expected in told
        assert '\n' not in told and told[-1] == '.'
        assert not trap.exists()
    # It still works.
    looker.look(image, CONFIG, CHECKPOINT)


def test_work_dirs_on_another_disk(looker, checkout, tmp_path):
    elsewhere = tmp_path / 'disk'
    (checkout / 'work_dirs').rename(elsewhere)
    (checkout / 'work_dirs').symlink_to(elsewhere)
    assert looker.look(looker.examples()[0], CONFIG, CHECKPOINT).scores


def test_files_of_other_folders_are_given_at_the_start(demo, checkout, tmp_path):
    """What the command line names may lie anywhere."""
    config, checkpoint = tmp_path / 'mine.py', tmp_path / 'mine.pth'
    config.write_text(f'_base_ = {str(checkout / CONFIG)!r}\n')
    (checkout / CHECKPOINT).rename(checkpoint)
    looker = demo('looker').Looker(str(config), str(checkpoint), root=checkout)
    assert looker.configs()[0] == str(config)
    assert looker.checkpoints() == [str(checkpoint)]
    look = looker.look(looker.examples()[0], looker.config, looker.checkpoint)
    assert len(look.scores) == 5


def test_pictures(demo, looker):
    draw = demo('app').draw
    look = looker.look(looker.examples()[0], CONFIG, CHECKPOINT)
    alone = draw(look, 0, True)
    assert alone.shape == (600, 720, 3)
    # Nearest neighbours: every pixel of the image is a square of 15.
    np.testing.assert_array_equal(alone[7::15, 7::15], look.image)
    pictures = [draw(look, iteration, True) for iteration in range(1, 5)]
    pictures += [draw(look, 4, False), draw(look, 4, True, True)]
    pictures.append(draw(look, 4, True, False, True))
    for index, picture in enumerate(pictures):
        assert picture.shape == alone.shape
        for other in [alone, *pictures[:index]]:
            assert (picture != other).any()
    assert draw(None, 2, True) is None


def test_page_asks_nothing_of_the_internet(demo, looker):
    page = demo('app').build_page(looker)
    config = page.get_config_file()
    assert config['analytics_enabled'] is False
    assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'
    # Nothing but the page itself calls what stands behind it.
    assert {each['api_visibility'] for each in config['dependencies']} == {'private'}


def test_text_of_others_is_not_html(demo):
    assert demo('app').message('<img src=x>.png', bad=True) == (
        '<p class="message bad" role="status">&lt;img src=x&gt;.png</p>'
    )


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config', 'no.py'], 'argument --config: no.py does not exist'),
        (['--checkpoint', 'no.pth'], 'argument --checkpoint: no.pth does not exist'),
        (['--port', '0'], 'argument --port: must be from 1 to 65535, got 0'),
        (['--device', 'abacus'], 'argument --device: abacus cannot be used'),
    ],
)
def test_command_line_mistakes(demo, arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['app.py', *arguments])
    with pytest.raises(SystemExit) as stopped:
        demo('app').parse_args()
    assert stopped.value.code == 2
    assert f'app.py: error: {expected}' in capsys.readouterr().err


def test_listens_on_this_machine_only(demo, monkeypatch):
    monkeypatch.setattr('sys.argv', ['app.py'])
    assert demo('app').parse_args().host == '127.0.0.1'
