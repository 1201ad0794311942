# Copyright (c) mmpsvit contributors.
"""Parameters and multiply-adds against the published networks' exact figures."""

import re

import pytest
import yaml
from mmengine.config import Config
from scripts import error_of

TOOL = 'tools/analysis_tools/get_flops.py'

# Of the published networks: attention counted, norms not, by points per side.
TINY = 1.565
BASE = {10: 3.091, 12: 4.115, 14: 5.380, 16: 6.911, 18: 8.741}
GMACS = {
    'ti14': TINY,
    'ti14_shared': TINY,
    **{f'b{n}': macs for n, macs in BASE.items()},
    **{f'b{n}_shared': macs for n, macs in BASE.items() if n != 16},
    'ablations/n20': 10.9,
    **{f'ablations/iters{n}': BASE[14] for n in (1, 2, 6, 8, 10)},
    **{f'transfer/b14_{data}': BASE[14] for data in ('cifar10', 'flowers102', 'cars')},
    'transfer/ti14_cifar100': TINY,
}
PARAMETERS = dict(ti14=4_777_902, ti14_shared=3_666_026)
PARAMETERS |= {f'b{n}': 21_344_302 for n in BASE}
PARAMETERS |= {f'b{n}_shared': 16_908_714 for n in BASE if n != 16}


@pytest.fixture
def index(root) -> dict[str, dict]:
    """What the model index says of each config of configs/psvit."""
    content = yaml.safe_load((root / 'configs' / 'psvit' / 'metafile.yml').read_text())
    return {
        model['Config'].removeprefix('configs/psvit/').removesuffix('.py'): model[
            'Metadata'
        ]
        for model in content['Models']
    }


def test_model_index(index, run_tool, run_here, root):
    """Every config stands in the index, with what the tool counts."""
    folder = root / 'configs' / 'psvit'
    configs = {name: folder / f'{name}.py' for name in index}
    assert set(configs.values()) == set(folder.rglob('*.py'))
    large = [path for path in configs.values() if path.stem.endswith('384px')]
    output = run_here(TOOL, *(path for path in configs.values() if path not in large))
    output += run_tool(TOOL, *large, '--shape', 384)
    rows = re.findall(r'^\| (\S+\.py) \| (\S+) \| (\S+) \|$', output, re.M)
    assert sorted(rows) == sorted(
        (str(path), f'{metadata["Parameters"]:,}', f'{metadata["FLOPs"] / 1e9:.3f}')
        for path, metadata in zip(configs.values(), index.values(), strict=True)
    )


def test_against_the_published_figures(index):
    for name, macs in GMACS.items():
        assert index[name]['FLOPs'] / 1e9 == pytest.approx(macs, rel=5e-3), name
    for name, parameters in PARAMETERS.items():
        assert index[name]['Parameters'] == parameters, name


def test_controls_against_arithmetic(index):
    """The two ViTs: patch embedding (and stem), 14 layers on 197 tokens, classifier."""
    channels, hidden, tokens, layers = 384, 1152, 197, 14
    layer = tokens * (4 * channels**2 + 2 * channels * hidden)
    layer += 2 * tokens**2 * channels
    rest = layers * layer + 1000 * channels
    # 7 x 7 convolution, then two bottlenecks on 56 x 56 pixels
    stem = 112**2 * 49 * 3 * 64
    stem += 56**2 * (64 * 64 + 9 * 64**2 + 64 * 256 + 64 * 256)
    stem += 56**2 * (256 * 64 + 9 * 64**2 + 64 * 384 + 256 * 384)
    for name, exact in dict(
        vit_same_hparams=rest + 196 * 16**2 * 3 * channels,
        vit_same_stem=rest + stem + 196 * 4**2 * channels**2,
    ).items():
        assert index[f'ablations/{name}']['FLOPs'] == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_numbers_of_channels(channels, root, import_tool):
    """Against three, only the first convolution of 7 x 7 and 64 channels differs."""
    analyse = import_tool('analysis_tools/get_flops.py').analyse
    counts = []
    for number in (3, channels):
        cfg = Config.fromfile(root / 'configs' / 'psvit' / 'ti14.py')
        cfg.model.backbone.in_channels = number
        cfg.data_preprocessor.update(mean=[0.0], std=[1.0])
        counts.append(analyse(cfg, (64, 32)))
    (parameters, macs), (other_parameters, other_macs) = counts
    weights = (channels - 3) * 49 * 64
    assert other_parameters - parameters == weights
    assert other_macs - macs == weights * 32 * 16


@pytest.mark.parametrize('name', ['mask-rcnn_psvit-ti14_fpn_1x', 'deformable-detr'])
def test_detectors_that_ask_for_the_size_of_the_image(name, root, run_here):
    pytest.importorskip('mmdet')
    (path,) = (root / 'configs' / 'mmdet').glob(f'{name}*_coco.py')
    (macs,) = re.findall(r'\| (\d+\.\d+) \|', run_here(TOOL, path, '--shape', 64))
    assert float(macs) > 0


def test_mistakes(root):
    line = error_of(TOOL, root / 'configs/psvit/ti14.py', '--shape', 1, 2, 3)
    assert 'argument --shape: H W or one number > 0, got [1, 2, 3]' in line
    assert 'nowhere.py does not exist' in error_of(TOOL, 'nowhere.py')
