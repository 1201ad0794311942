# Copyright (c) mmpsvit contributors.
"""MMPretrain's tools on a small training, by the commands of docs/features.md."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

TOOLS = Path(find_spec('mmpretrain').origin).parent / '.mim' / 'tools'
# What each command writes.
RESULTS = {
    'analyze_logs': 'loss.png',
    'confusion_matrix': 'matrix.png',
    'vis_tsne': 'work/tsne_*/feat_1.png',
    'vis_cam': 'cam.png',
    'browse_dataset': 'browse/0.png',
    'publish_model': 'published_*.pth',
}


def test_commands_of_the_page(trained, small, root, run_tool, tmp_path):
    page = (root / 'docs' / 'features.md').read_text()
    commands = re.findall(r'^(\w+=\w+ )?mim run mmpretrain (\w+) (.*)$', page, re.M)
    assert {tool for _, tool, _ in commands} == set(RESULTS)
    config = tmp_path / 'work' / 'psvit.py'
    (log,) = trained.parent.glob('*/vis_data/2*.json')
    values = {
        'CONFIG': config,
        'CHECKPOINT': trained,
        'IMAGE': next(small[2].rglob('*.png')),
        'work_dirs/demo/DATE/vis_data/DATE.json': log,
    }
    for variable, tool, line in commands:
        if tool == 'vis_cam' and not find_spec('pytorch_grad_cam'):
            continue
        words = [values.get(word, word) for word in shlex.split(line)]
        if tool == 'vis_tsne':
            # Fewer images than t-SNE's usual neighbourhood.
            words += ['--perplexity', '3']
        (script,) = TOOLS.rglob(f'{tool}.py')
        env = dict([variable.strip().split('=')] if variable else [])
        run_tool(script, *words, **env)
        assert list(tmp_path.glob(RESULTS[tool])), tool
