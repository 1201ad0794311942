# Copyright (c) mmpsvit contributors.
"""Write tables and plots of the results that there are into a page.

    python projects/miniature/report.py        # this folder's page
    python projects/miniature/report.py OUT    # another one's: OUT/README.md

The text of the page is written by hand. Each table stands between two comments,
`<!-- a -->` and `<!-- end of a -->`, and what is between them is replaced; a table
that has no place yet is added at the end.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from plan import HERE, LR, NETWORKS, TABLES, Table, Training, format_lr

from mmpsvit.guard import write_atomically

COLOURS = {
    'psvit': '#d81b60',
    'vit': '#5f6b7a',
    'vit_same_stem': '#1e88e5',
    'iters1': '#f0a202',
    'shared': '#2e9e6b',
}
CHANCE = 10  # percent
MISSING = 'missing'

Results = Mapping[Training, Sequence[dict]]


def read_results(out: Path) -> Results:
    """The results of every training of the plan, in the order of their seeds."""
    results = {}
    for training in dict.fromkeys(t for table in TABLES.values() for t in table.seeds):
        paths = (out / 'results').glob(f'{training.name}_seed*.json')
        found = [json.loads(path.read_bytes()) for path in paths]
        results[training] = sorted(found, key=lambda result: result['settings']['seed'])
    return results


def format_mean(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several values, sample standard deviation."""
    if not len(values):
        return MISSING
    text = f'{np.mean(values):.{digits}f}'
    return text + (f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else '')


def format_inside(results: Sequence[dict], iteration: int) -> str:
    """The share of points in the digit's box, in percent, if there are points."""
    shares = [result['inside'] or [] for result in results]
    if any(iteration >= len(each) for each in shares) or not all(shares):
        return ''
    return format_mean([100 * each[iteration] for each in shares], 2)


def format_cell(column: str, training: Training, found: Sequence[dict]) -> str:
    """A cell of a table.

    Args:
        column (str): The column, one of those that follow.
        training (Training): The row.
        found (Sequence[dict]): The results of its seeds.
    """
    match column.split():
        case ['half' | 'end']:
            return format_mean([result['accuracy'][column] for result in found])
        case ['inside', *iteration]:
            return format_inside(found, int(iteration[0]) - 1 if iteration else -1)
        case ['parameters']:
            return f'{found[0]["parameters"]:,}' if found else MISSING
        case ['seeds']:
            wanted = max(table.seeds.get(training, 0) for table in TABLES.values())
            return f'{len(found)}' + f' of {wanted}' * (len(found) < wanted)
        case ['px']:
            return str(training.canvas)
        case ['learning', 'rate']:
            return format_lr(training.lr)
    raise ValueError(f'there is no column {column!r}')


def format_table(table: Table, results: Results, out: Path) -> str:
    """A table in Markdown, with links relative to the page's folder."""
    lines = [['network', *table.columns], ['---', *['---:'] * len(table.columns)]]
    configs = os.path.relpath(HERE / 'configs', out)
    for training in table.seeds:
        name = training.network
        label = f'[{NETWORKS[name]}]({configs}/{name}.py)'
        if training.lr != LR and 'learning rate' not in table.columns:
            label += f', learning rate {format_lr(training.lr)}'
        if training.length > 1:
            label += f', {training.length} times the steps'
        row = training, results[training]
        lines.append([label, *(format_cell(column, *row) for column in table.columns)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def describe_runs(results: Results) -> str:
    """Settings, commits, versions, machines and dates of all results."""
    runs = [run for found in results.values() for run in found]
    seconds = sum(run['seconds_per_step'] * run['settings']['steps'] for run in runs)
    lines = [f'{len(runs)} runs; training took {seconds / 3600:.1f} hours of one core']
    for run in runs:
        settings, machine = run['settings'], run['machine']
        versions = (f'{name} {version}' for name, version in run['versions'].items())
        about = '{num_train} images to train, {num_val} to validate'.format(**settings)
        about += '; {cores} cores, {cpu}, {system}; '.format(**machine)
        about += ', '.join(versions)
        for state in run['code']:
            dirty = ' with uncommitted changes' * bool(state['dirty'])
            lines.append(f'commit `{state["commit"]}`{dirty}, {run["date"]}: {about}')
    return '\n'.join(f'- {line}' for line in dict.fromkeys(lines))


def curve_figure(results: Results) -> Figure:
    """Accuracy while training, that of the long runs on the right."""
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    short, long = figure.subplots(1, 2, sharey=True)
    for name, colour in COLOURS.items():
        for length, axes, line in ((1, short, '-'), (1, long, '-'), (5, long, '--')):
            found = results.get(Training(name, length=length))
            if not found:
                continue
            label = NETWORKS[name] + f', {length} times the steps' * (length > 1)
            label = '_' * (axes is short) + label  # once in the legend
            steps, values = np.array([run['curve'] for run in found]).transpose(2, 0, 1)
            mean, deviation = values.mean(0), values.std(0, ddof=len(found) > 1)
            axes.plot(steps[0], mean, line, color=colour, label=label)
            band = mean - deviation, mean + deviation
            axes.fill_between(steps[0], *band, color=colour, alpha=0.2, lw=0)
    for axes in (short, long):
        axes.axhline(CHANCE, color='#999999', linewidth=0.8, linestyle=':')
        axes.set(xlabel='training steps', ylabel='top-1, %', ylim=(0, 100))
        axes.grid(color='#e6e6e6', linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
    # Below: there is no room between the curves.
    figure.legend(loc='outside lower center', ncols=3, fontsize=8, frameon=False)
    return figure


def write_page(out: Path) -> Path:
    """Write plots and page from the results in a folder; return the page."""
    results = read_results(out)
    with write_atomically(out / 'curves.png') as temporary:
        # Without the version, the same figure gives the same file.
        curve_figure(results).savefig(temporary, metadata={'Software': None})

    page = out / 'README.md'
    if page.exists():
        text = page.read_text()
    else:
        pictures = (f'![{path.stem}]({path.name})\n' for path in out.glob('*.png'))
        text = '\n'.join(['# Results\n', *sorted(pictures)])
    blocks = {name: format_table(table, results, out) for name, table in TABLES.items()}
    blocks['runs'] = describe_runs(results)
    titles = {name: table.title for name, table in TABLES.items()}
    for name in blocks:
        if f'<!-- {name} -->' not in text:
            title = titles.get(name, 'Made with')
            text += f'\n## {title}\n\n<!-- {name} -->\n<!-- end of {name} -->\n'
    with write_atomically(page) as temporary:
        temporary.write_text(fill_in(text, blocks))
    return page


def fill_in(text: str, blocks: Mapping[str, str]) -> str:
    """Replace what is between the comments of each block in a page."""
    for name, block in blocks.items():
        begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->\n'
        before, found, rest = text.partition(begin)
        if found:
            text = f'{before}{begin}{block}\n{end}{rest.partition(end)[2]}'
    return text


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path, nargs='?', default=HERE, help='its folder')
    print(f'page: {write_page(parser.parse_args().out)}')


if __name__ == '__main__':
    main()
