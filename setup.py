# Copyright (c) mmpsvit contributors.
"""Packaging of mmpsvit; everything that tools read is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What MMEngine and MIM look for under mmpsvit/.mim of an installed package.
MIM_FILES = ('configs', 'tools', 'model-index.yml')
# What works in a checkout only.
CHECKOUT_ONLY = ('install_mmcv_ops.sh', 'run_demo.sh', 'run_on_gpu.sh', 'aims.py')


class BuildPyWithMimFiles(build_py):
    """Ships configs, tools and model index inside the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            self._place(ROOT / 'mmpsvit' / '.mim', link=True)
        else:
            self._place(Path(self.build_lib) / 'mmpsvit' / '.mim', link=False)

    @staticmethod
    def _place(folder: Path, link: bool) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_FILES:
            source, target = ROOT / name, folder / name
            if link:
                try:
                    target.symlink_to(source)
                    continue
                except OSError:  # Windows, without the right to make links
                    pass
            if source.is_dir():
                ignore = shutil.ignore_patterns('__pycache__', *CHECKOUT_ONLY)
                shutil.copytree(source, target, ignore=ignore)
            else:
                shutil.copy2(source, target)


def _version() -> str:
    scope: dict = {}
    exec((ROOT / 'mmpsvit' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


setup(
    name='mmpsvit',
    version=_version(),
    description='PS-ViT, Vision Transformer with Progressive Sampling, for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmpsvit', 'mmpsvit.*']),
    cmdclass={'build_py': BuildPyWithMimFiles},
    # Either family of distributions may provide mmengine, mmcv, mmpretrain and
    # mmdet; naming one here would pull it in over the other.
    install_requires=[
        'torch>=2.1',
        'torchvision',
        'numpy',
        'matplotlib',
        'packaging',
        'pillow',
        'tqdm',
    ],
    extras_require={
        'onedl': ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain'],
        'mmdet': ['onedl-mmdetection'],
        'mmseg': ['onedl-mmsegmentation'],
        # Of `make demo`, and of its page in the browser.
        'demo': ['scikit-learn'],
        'app': ['gradio>=6.31'],
        # Of vis_cam.py.
        'cam': ['grad-cam'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'test': [
            'hypothesis',
            'ipykernel',
            'nbclient',
            'nbformat',
            'psutil',
            'pytest',
            'pytest-xdist',
            'ruff',
            'safetensors',
            'scikit-image',
            'scikit-learn',
            'scipy',
            'selenium',
            'sybil',
            'tensorboard',
        ],
    },
)
