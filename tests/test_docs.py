# Copyright (c) mmpsvit contributors.
"""The pages: examples run, commands could run, links lead somewhere.

Sybil reads the code blocks. The line that opens one says what happens to it:
``shell run`` and ``python run`` are run, in a scratch folder with a checkout in it;
``python file=NAME`` becomes a file of that folder. Commands in other blocks may want
8 GPUs or ImageNet: their scripts, options, configs, targets and pins must exist. Other
Python must compile, and a config among it must build its model.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from packaging.version import Version
from scripts import ROOT, run_in_process
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.example import SybilFailure
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from mmpsvit import __version__

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('.', '.github', 'configs', 'demo', 'docs', 'projects')
    for path in (ROOT / folder).glob('*.md' if folder == '.' else '**/*.md')
)
WALKTHROUGH = 'docs/finetune.md'
LEXER = FencedCodeBlockLexer('(?:python|shell)(?: .+)?')


def parse(document):
    """The code blocks of a page, each with what happens to it."""
    for region in LEXER(document):
        language, _, mark = region.lexemes['language'].partition(' ')
        evaluators = {
            ('shell', ''): check_commands,
            ('shell', 'run'): run_shell,
            ('python', ''): check_python,
            ('python', 'run'): PythonEvaluator(),
        }
        if mark.startswith('file='):
            evaluators['python', mark] = write_file
        evaluator = evaluators[language, mark]
        region.parsed, region.evaluator = region.lexemes['source'], evaluator
        yield region


def write_file(example: Example) -> None:
    name = example.region.lexemes['language'].partition('file=')[2]
    Path(name).write_text(example.parsed)
    check_python(example)


def run_shell(example: Example) -> str | None:
    """Run a block as a script; what it printed, if it failed."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', example.parsed],
        env={**os.environ, 'PATH': path, 'PYTHONWARNINGS': 'ignore'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout[-3000:] if done.returncode else None


def check_python(example: Example) -> str | None:
    """It compiles, what it imports of mmpsvit is there, and a config builds a model."""
    imports = [
        node
        for node in ast.parse(example.parsed).body
        if isinstance(node, ast.ImportFrom) and node.module.startswith('mmpsvit')
    ]
    exec(compile(ast.Module(imports, []), example.path, 'exec'), {})
    if '_base_ = ' not in example.parsed:
        return
    Path('page.py').write_text(example.parsed)
    cfg = Config.fromfile('page.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        MODELS.build(cfg.model)


@cache
def options_of(script: str) -> set[str]:
    """The options in the help of a tool, or in the source of a shell script."""
    # The launchers hand theirs on.
    script = re.sub(r'(?:dist|slurm)_(train|test)\.sh', r'\1.py', script)
    if script.endswith('.py'):
        text = run_in_process(script, '--help')
    else:
        text = (ROOT / script).read_text()
    return set(re.findall(r'--[\w-]+', text))


def check_commands(example: Example) -> str | None:
    """What is wrong with the first bad command of a block."""
    pins = (ROOT / 'constraints.txt').read_text().split()
    for line in example.parsed.replace('\\\n', ' ').split('\n'):
        script = None
        words = shlex.split(line, comments=True)
        for word in words:
            option = word.split('=')[0]
            if re.match(r'(tools|demo|projects|configs|tests)/', word):
                if not any(ROOT.glob(word)):
                    return f'{word} does not exist'
                is_script = re.match(r'(tools|demo|projects)/.*\.(py|sh)$', word)
                if script is None and is_script:
                    script = word
            elif (
                option.startswith('--') and script and option not in options_of(script)
            ):
                return f'{script} has no option {option}'
            elif re.match(r'[\w-]+==', word) and word not in pins:
                return f'{word} is not in constraints.txt'
        if words[:1] == ['make']:
            dry_run = ['make', '--dry-run', '--silent', *words[1:]]
            done = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                return done.stderr


SYBIL = Sybil([parse])


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A scratch folder that looks like a checkout without data and results."""
    for path in ROOT.iterdir():
        if path.name not in ('data', 'work_dirs') and not path.name.startswith('.'):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('page', [page for page in PAGES if page != WALKTHROUGH])
def test_code_blocks(page, checkout):
    for example in SYBIL.parse(ROOT / page).examples():
        example.evaluate()


@pytest.mark.walkthrough
def test_walkthrough(checkout):
    test_code_blocks(WALKTHROUGH, checkout)
    assert Path('work_dirs/digits/points.png').exists()


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r'^ *```.*?^ *```$', '', page.read_text(), flags=re.M | re.S)
    headings = re.findall(r'^#+ +(.+)$', text, re.M)
    return {re.sub(r'[^\w\- ]', '', h).lower().replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links(page):
    """Relative ones, to files and to headings."""
    broken = []
    for link in re.findall(r'\]\(([^)\s]+)\)', (ROOT / page).read_text()):
        path, _, anchor = link.partition('#')
        target = (ROOT / page).parent / path if path else ROOT / page
        if re.match(r'[a-z]+:', link):
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    ('language', 'text', 'mistake'),
    [
        ('shell', 'python tools/train.py CONFIG --fast', 'no option --fast'),
        ('shell', 'tools/dist_test.sh CONFIG \\\n  --slow', 'no option --slow'),
        ('shell', 'python tools/analysis_tools/get_flops.py CONFIG --amp', 'no option'),
        ('shell', 'python tools/no.py', 'tools/no.py does not exist'),
        ('shell', 'make none', "No rule to make target 'none'"),
        ('shell', 'pip install torch==0.1', 'torch==0.1 is not in constraints.txt'),
        ('shell', 'python tools/train.py configs/x.py', 'configs/x.py does not'),
        ('shell run', 'echo said; false\ntrue', 'said'),
        ('python', 'print(', 'never closed'),
        ('python', 'from mmpsvit import nothing', 'cannot import name'),
        ('python', "_base_ = 'mmpsvit::psvit/no.py'", 'no.py'),
        ('shell runs', 'true', 'runs'),
    ],
)
def test_mistakes_are_found(language, text, mistake, checkout):
    Path('page.md').write_text(f'```{language}\n{text}\n```\n')
    errors = (SybilFailure, SyntaxError, ImportError, OSError, KeyError)
    with pytest.raises(errors, match=re.escape(mistake)):
        next(SYBIL.parse(Path('page.md')).examples()).evaluate()


def test_one_version_everywhere():
    """MAJOR.MINOR.PATCH in all files; changelog and citation name the next release."""
    version = Version(__version__)
    changes = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(r'^## \[([\d.]+)\]', changes, re.M)[1] == version.base_version
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == version.base_version
    assert version.is_prerelease == ('Unreleased' in changes)
