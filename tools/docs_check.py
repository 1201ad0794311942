# Copyright (c) mmpsvit contributors.
"""Check the documentation: commands, options, paths, links and examples.

    python tools/docs_check.py          # in seconds, runs nothing
    python tools/docs_check.py --run    # also runs the examples, in a scratch folder

The line that opens a code block says what happens to it. Blocks with ``run`` are run,
page by page and in order; those with ``file=NAME`` are written to a file first. Every
other shell command must match a pattern of ``docs/commands.yml``, which says what tests
it, or why nothing can. A command that does not is a mistake.
"""

import argparse
import ast
import contextlib
import fnmatch
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = 'docs/commands.yml'
PAGES = ('*.md', 'docs/**/*.md', 'configs/**/*.md', '.github/**/*.md')
FENCE = re.compile(r'^( *)```(\w+)(?: ([^\n]+))?\n(.*?)^\1```$', re.M | re.S)
SHELLS = ('shell', 'bash')
LINK = re.compile(r'\]\(([^)\s]+)\)')
# These hand their options on.
WRAPPED = {
    'tools/dist_train.sh': 'tools/train.py',
    'tools/slurm_train.sh': 'tools/train.py',
    'tools/dist_test.sh': 'tools/test.py',
    'tools/slurm_test.sh': 'tools/test.py',
}
# What an example may not see in its scratch folder.
RESULTS = {'data', 'work_dirs', 'build', 'dist'}


class Block(NamedTuple):
    """A code block of a page, or one command of it.

    Attributes:
        place (str): Page and line, ``docs/install.md:12``.
        language (str): What follows the three backticks.
        mark (str): What follows the language: ``run``, ``file=NAME``, or nothing.
        text (str): The code.
    """

    place: str
    language: str
    mark: str
    text: str


def find_pages(root: Path) -> list[Path]:
    """All pages of the documentation."""
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def blocks_of(page: Path, root: Path) -> list[Block]:
    """The code blocks of a page."""
    text = page.read_text(encoding='utf-8')
    found = []
    for match in FENCE.finditer(text):
        line = text.count('\n', 0, match.start()) + 1
        place = f'{page.relative_to(root).as_posix()}:{line}'
        language, mark, code = match.group(2), match.group(3) or '', match.group(4)
        found.append(Block(place, language, mark, textwrap.dedent(code)))
    return found


def commands_of(block: Block) -> Iterator[Block]:
    """The commands of a shell block: no comments, one line and one space each."""
    for line in block.text.replace('\\\n', ' ').split('\n'):
        words = shlex.split(line, comments=True)
        if words:
            yield block._replace(text=' '.join(words))


@cache
def help_of(script: Path) -> str:
    """What a tool says about its options: --help, or the text of a shell script."""
    if script.suffix != '.py':
        return script.read_text(encoding='utf-8')
    said = io.StringIO()
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), '--help']
    sys.path.insert(0, str(script.parent))
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv, sys.path[:] = argv, path
    return said.getvalue()


def check_command(command: Block, root: Path) -> Iterator[str]:
    """What is wrong with the scripts, options, configs and targets that it names."""
    words = command.text.split(' ')
    script = next((word for word in words if word.startswith('tools/')), None)
    if script is not None and not (root / script).is_file():
        yield f'{command.place}: {script} does not exist'
    elif script is not None:
        known = set(
            re.findall(r'--[\w-]+', help_of(root / WRAPPED.get(script, script)))
        )
        for word in words:
            option = word.split('=')[0]
            if option.startswith('--') and option not in known:
                yield f'{command.place}: {script} has no option {option}'
    for word in words:
        if word.startswith('configs/') and not any(root.glob(word)):
            yield f'{command.place}: {word} does not exist'
    if words[0] == 'make':
        makefile = (root / 'Makefile').read_text(encoding='utf-8')
        for target in words[1:]:
            if '=' not in target and not re.search(rf'^{target}:', makefile, re.M):
                yield f'{command.place}: the Makefile has no target {target}'


def read_entries(root: Path) -> list[dict]:
    """The table of commands; entries have ``commands``, and how they are checked."""
    return yaml.safe_load((root / COMMANDS).read_text(encoding='utf-8'))


def check_entry(entry: dict, root: Path) -> Iterator[str]:
    """What is wrong with an entry of the table."""
    name = f'{COMMANDS}: {entry["commands"][0]!r}'
    unknown = set(entry) - {'commands', 'tests', 'workflow', 'not_run'}
    if unknown:
        yield f'{name}: unknown keys {sorted(unknown)}'
    if not set(entry) & {'tests', 'workflow', 'not_run'}:
        yield f'{name}: needs tests, workflow or not_run'
    for test in entry.get('tests', ()):
        path, _, function = test.partition('::')
        file = root / path
        source = file.read_text(encoding='utf-8') if file.is_file() else ''
        if not re.search(rf'^def {function}\(', source, re.M):
            yield f'{name}: there is no test {test}'
    if 'workflow' in entry:
        workflow = (root / entry['workflow']).read_text(encoding='utf-8')
        for command in entry['commands']:
            if command not in workflow:
                yield f'{name}: {entry["workflow"]} does not run {command}'


def check_commands(blocks: list[Block], root: Path) -> Iterator[str]:
    """What is wrong with the commands, and with the table that lists them."""
    entries = read_entries(root)
    unused = {pattern for entry in entries for pattern in entry['commands']}
    patterns = list(unused)
    for block in blocks:
        if block.language not in SHELLS:
            continue
        for command in commands_of(block):
            yield from check_command(command, root)
            if block.mark == 'run':
                continue
            fitting = {p for p in patterns if fnmatch.fnmatchcase(command.text, p)}
            unused -= fitting
            if not fitting:
                yield (
                    f'{command.place}: {command.text!r} is not run by this check '
                    f'and not listed in {COMMANDS}'
                )
    for pattern in sorted(unused):
        yield f'{COMMANDS}: no page has a command {pattern!r}'
    for entry in entries:
        yield from check_entry(entry, root)


def check_blocks(blocks: list[Block]) -> Iterator[str]:
    """What is wrong with marks and with the syntax of Python."""
    for block in blocks:
        if block.mark not in ('', 'run') and not block.mark.startswith('file='):
            yield f'{block.place}: mark is run or file=NAME, got {block.mark}'
        if block.language == 'python':
            try:
                ast.parse(block.text)
            except SyntaxError as error:
                yield f'{block.place}: not Python ({error})'


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = FENCE.sub('', page.read_text(encoding='utf-8'))
    headings = re.findall(r'^#+ +(.+)$', text, re.M)
    return {re.sub(r'[^\w\- ]', '', h).lower().replace(' ', '-') for h in headings}


def check_links(pages: list[Path], root: Path) -> Iterator[str]:
    """Relative links that lead nowhere."""
    for page in pages:
        text = FENCE.sub('', page.read_text(encoding='utf-8'))
        for link in LINK.findall(text):
            if re.match(r'[a-z]+:', link):
                continue
            path, _, anchor = link.partition('#')
            target = page.parent / path if path else page
            name = page.relative_to(root).as_posix()
            if not target.exists():
                yield f'{name}: {link} does not exist'
            elif anchor and anchor not in anchors_of(target):
                yield f'{name}: {link} names no heading of {target.name}'


def find_mistakes(root: Path) -> list[str]:
    """Everything that is wrong, one line each."""
    pages = find_pages(root)
    blocks = [block for page in pages for block in blocks_of(page, root)]
    return [
        *check_blocks(blocks),
        *check_commands(blocks, root),
        *check_links(pages, root),
    ]


def run_page(page: Path, root: Path) -> None:
    """Run the marked blocks of a page in a scratch folder.

    Raises:
        subprocess.CalledProcessError: If one of them fails; ``output`` is what it said.
    """
    blocks = [block for block in blocks_of(page, root) if block.mark]
    if not any(block.mark == 'run' for block in blocks):
        return
    env = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'PYTHONWARNINGS': 'ignore',
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # It looks like a checkout without data and results.
        for path in root.iterdir():
            if path.name not in RESULTS and not path.name.startswith('.'):
                (scratch / path.name).symlink_to(path)
        for block in blocks:
            if block.mark != 'run':
                (scratch / block.mark.removeprefix('file=')).write_text(block.text)
                continue
            shell = ['bash', '-euo', 'pipefail', '-c']
            python = [sys.executable, '-c']
            print(f'{block.place} ... ', end='', flush=True)
            start = time.monotonic()
            subprocess.run(
                [*(shell if block.language in SHELLS else python), block.text],
                cwd=scratch,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            )
            print(f'{time.monotonic() - start:.0f} s', flush=True)


def main() -> None:
    """Check, and run what is asked for."""
    parser = argparse.ArgumentParser(description='Check the documentation')
    parser.add_argument(
        '--run',
        nargs='*',
        metavar='PAGE',
        help='run the examples of these pages, without a value of all pages',
    )
    args = parser.parse_args()
    pages = find_pages(ROOT) if not args.run else [Path(p).resolve() for p in args.run]
    for page in pages:
        if not page.is_file() or not page.is_relative_to(ROOT):
            parser.error(f'argument --run: {page} is not a page of this repository')
    mistakes = find_mistakes(ROOT)
    if mistakes:
        sys.exit('\n'.join([*mistakes, f'docs_check.py: {len(mistakes)} mistakes']))
    if args.run is not None:
        try:
            for page in pages:
                run_page(page, ROOT)
        except subprocess.CalledProcessError as error:
            sys.exit(f'failed with code {error.returncode}\n{error.output[-3000:]}')
    print('docs_check.py: no mistakes')


if __name__ == '__main__':
    main()
