# Copyright (c) mmpsvit contributors.
"""Documentation and project files say what is so."""

import importlib
import re

import pytest
import yaml
from packaging.version import Version

from mmpsvit import __version__

PAGE = """# A page

```shell
python tools/do.py FILE --fast    # a comment
make all
```

```python
print('hello')
```

[itself](#a-page), [far away](https://example.org/x), [licence](LICENSE)
"""
TABLE = """
- commands: [python tools/do.py *]
  tests: ['tests/test_do.py::test_fast']
- commands: [make all]
  not_run: hours
"""


@pytest.fixture
def docs_check(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'tools'))
    return importlib.import_module('docs_check')


@pytest.fixture
def project(tmp_path):
    """A small project without mistakes."""
    files = {
        'README.md': PAGE,
        'LICENSE': 'free',
        'Makefile': 'all:\n\ttrue\n',
        'docs/commands.yml': TABLE,
        'tests/test_do.py': 'def test_fast():\n    pass\n',
        'tools/do.py': (
            'import argparse\n'
            'parser = argparse.ArgumentParser()\n'
            "parser.add_argument('--fast')\n"
            'parser.parse_args()\n'
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_this_repository(run_tool):
    """No unknown command, test, option, config, target or link in any page."""
    assert run_tool('tools/docs_check.py').endswith('docs_check.py: no mistakes\n')


def test_examples_are_run(docs_check, root):
    """The pages whose examples `make docs-check` runs still mark them."""
    marks = {
        page: [block.mark for block in docs_check.blocks_of(root / page, root)]
        for page in ('docs/finetune.md', 'docs/how_sampling_works.md')
    }
    assert marks['docs/finetune.md'].count('run') >= 4
    assert 'run' in marks['docs/how_sampling_works.md']


def test_no_mistakes(docs_check, project):
    assert docs_check.find_mistakes(project) == []


@pytest.mark.parametrize(
    ('name', 'old', 'new', 'mistake'),
    [
        ('README.md', '--fast', '--slow', 'README.md:3: tools/do.py has no option --s'),
        ('README.md', 'tools/do.py', 'tools/no.py', 'tools/no.py does not exist'),
        ('README.md', 'make all', 'make none', 'the Makefile has no target none'),
        ('README.md', 'make all', 'rm -r x', "'rm -r x' is not run by this check and"),
        ('README.md', 'FILE', 'configs/x.py', 'configs/x.py does not exist'),
        (
            'README.md',
            '```shell',
            '```shell runs',
            'mark is run or file=NAME, got runs',
        ),
        ('README.md', "print('", "print(('", 'README.md:8: not Python'),
        ('README.md', '(LICENSE)', '(LICENCE)', 'README.md: LICENCE does not exist'),
        ('README.md', '#a-page', '#b-page', '#b-page names no heading of README.md'),
        ('docs/commands.yml', 'fast', 'slow', 'no test tests/test_do.py::test_slow'),
        ('docs/commands.yml', 'all]', 'all, ls]', "no page has a command 'ls'"),
        ('docs/commands.yml', 'not_run', 'notrun', "unknown keys ['notrun']"),
    ],
)
def test_mistakes_are_found(docs_check, project, name, old, new, mistake):
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))
    assert any(mistake in line for line in docs_check.find_mistakes(project))


def test_examples_run_in_order(docs_check, project, capsys):
    page = project / 'README.md'
    page.write_text(
        '```python file=add.py\nprint(1 + 1)\n```\n'
        '```shell run\npython add.py >sum.txt\n```\n'
        "```python run\nassert open('sum.txt').read() == '2\\n'\n```\n"
    )
    docs_check.run_page(page, project)
    assert [line.split(' ')[0] for line in capsys.readouterr().out.splitlines()] == [
        'README.md:4',
        'README.md:7',
    ]
    # In a folder of its own.
    assert not (project / 'sum.txt').exists()
    page.write_text('```shell run\nfalse\ntrue\n```\n')
    with pytest.raises(docs_check.subprocess.CalledProcessError):
        docs_check.run_page(page, project)


def pins_of(path) -> dict[str, str]:
    """Distributions and versions of a file of constraints."""
    return dict(re.findall(r'^([\w-]+)==(\S+)$', path.read_text(), re.M))


def test_tested_versions_are_those_of_the_constraints(root):
    """README's table, a column per file."""
    section = (root / 'README.md').read_text().split('## Tested with')[1].split('##')[0]
    rows = [row.split('|')[2:4] for row in section.split('\n') if row.startswith('| ')]
    for cells, file in zip(
        zip(*rows, strict=True),
        ['constraints.txt', 'constraints-openmmlab.txt'],
        strict=True,
    ):
        found = re.findall(r'\b([a-z][\w-]+) (\d+\.\d+\.\d+)\b', ' '.join(cells))
        assert len(found) == 8
        pinned = pins_of(root / file)
        assert [(name, v) for name, v in found if pinned[name] != v] == []


def test_versions_are_those_of_the_constraints(root):
    pinned = pins_of(root / 'constraints.txt')
    found = []
    for path in [root / 'README.md', *root.glob('docs/*.md')]:
        found += re.findall(r'\b([a-z][\w-]+)==(\d[\w.]*)', path.read_text())
    assert {'torch', 'torchvision', 'onedl-mmcv', 'onedl-mmpretrain'} <= {
        name for name, _ in found
    }
    assert [(name, v) for name, v in found if pinned.get(name) != v] == []


def test_one_version_everywhere(root):
    """MAJOR.MINOR.PATCH in all files; changelog and citation name the next release."""
    version = Version(__version__)
    assert re.fullmatch(r'\d+\.\d+\.\d+', version.base_version)
    changes = (root / 'CHANGELOG.md').read_text()
    assert re.search(r'^## \[([\d.]+)\]', changes, re.M)[1] == version.base_version
    citation = yaml.safe_load((root / 'CITATION.cff').read_text())
    assert citation['version'] == version.base_version
    if not version.is_prerelease:
        assert 'Unreleased' not in changes


def test_citation(root):
    """The paper, as in the README."""
    citation = yaml.safe_load((root / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    paper = citation['preferred-citation']
    bibtex = ' '.join((root / 'README.md').read_text().split())
    for author in paper['authors']:
        assert f'{author["family-names"]}, {author["given-names"]}' in bibtex
    assert paper['title'] in bibtex and f'{{{paper["year"]}}}' in bibtex
    assert f'{{{paper["start"]}--{paper["end"]}}}' in bibtex


def test_hooks_and_workflow(root):
    hooks = yaml.safe_load((root / '.pre-commit-config.yaml').read_text())['repos']
    revs = {repo['repo'].split('/')[-1]: repo['rev'] for repo in hooks}
    constraints = (root / 'constraints-common.txt').read_text().split('\n')
    assert f'ruff=={revs["ruff-pre-commit"][1:]}' in constraints
    workflow = yaml.safe_load((root / '.github/workflows/test.yml').read_text())
    job = workflow['jobs']['test']
    assert job['strategy']['matrix']['python'] == ['3.10', '3.11', '3.12']
    runs = [step['run'] for step in job['steps'] if 'run' in step]
    assert runs[:2] == ['make test PYTHON=python', 'make lint']
    runs = [step.get('run') for step in workflow['jobs']['test-openmmlab']['steps']]
    assert 'make test-openmmlab OPENMMLAB_PYTHON=python' in runs
    for path in (root / '.github' / 'ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(path.read_text())
        assert path.name == 'config.yml' or {'name', 'description', 'body'} <= set(form)
