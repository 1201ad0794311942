# Copyright (c) mmpsvit contributors.
"""Write the tables and the plot of the results that there are.

    python projects/miniature/report.py        # into the pages
    python projects/miniature/report.py OUT    # of other results: OUT/tables.md

The text of the pages is written by hand. Each table stands between two comments,
`<!-- a -->` and `<!-- end of a -->`, and what is between them is replaced.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from plan import (
    CONTROLS,
    COST,
    DEMO,
    EXPERIMENTS,
    GROWN,
    HERE,
    LONG,
    LR,
    MINIATURE,
    NETWORKS,
    POINTS,
    RATES,
    RATES_SEED,
    ROOT,
    Results,
    Training,
    accuracy,
    at_rates,
    format_lr,
    read_results,
)

from mmpsvit.guard import write_atomically

COLOURS = {
    'psvit': '#d81b60',
    'vit': '#5f6b7a',
    'vit_same_stem': '#1e88e5',
    'iters1': '#f0a202',
    'shared': '#2e9e6b',
}
CHANCE = 10  # percent
Found = Mapping[int, dict]  # results by seed


def format_mean(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several values, sample standard deviation; nothing of none."""
    if not len(values):
        return ''
    text = f'{np.mean(values):.{digits}f}'
    return text + (f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else '')


def format_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Mean and standard error of the paired differences over the common seeds."""
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return ''
    error = np.std(pairs, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else None
    return f'{np.mean(pairs):+.1f}' + (f' ± {error:.1f}' if error is not None else '')


def percent(values: Iterable[float | None]) -> str:
    """Mean of shares in percent; nothing if nothing moved."""
    values = [value for value in values if value is not None]
    return f'{100 * np.mean(values):.1f}' if values else ''


def format_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def found_of(results: Results, training: Training) -> dict[int, dict]:
    """The results of a training; not of the seed that learning rates are chosen by."""
    found = results.get(training, {})
    return {seed: result for seed, result in found.items() if seed != RATES_SEED}


def scores(found: Found) -> dict[int, float]:
    """Top-1 at the end, by seed."""
    return {seed: accuracy(result) for seed, result in found.items()}


def at_part(found: Found, part: float = 1 / 2) -> list[float]:
    """Top-1 at a part of the steps."""
    values = []
    for curve in (result['curve'] for result in found.values()):
        step = curve[-1]['step'] * part
        nearest = min(curve, key=lambda point: abs(point['step'] - step))
        values.append(nearest['accuracy'])
    return values


def share(found: Found, name: str, iteration: int = -1) -> list[float | None]:
    """A share at the end of the trainings, of those with so many iterations."""
    shares = [result['curve'][-1].get(name, []) for result in found.values()]
    return [each[iteration] for each in shares if len(each) > max(iteration, 0)]


def format_inside(found: Found, iteration: int = -1) -> str:
    """The share of points in the digit's box, in percent, if there are points."""
    shares = share(found, 'inside', iteration)
    return format_mean([100 * each for each in shares], 2)


COLUMNS: dict[str, Callable[[Training, Found], str]] = {
    'px': lambda training, _: str(training.data['size']),
    'learning rate': lambda training, _: format_lr(training.lr),
    'parameters': lambda _, found: ', '.join(
        {f'{result["parameters"]:,}' for result in found.values()}
    ),
    'half': lambda _, found: format_mean(at_part(found)),
    'end': lambda _, found: format_mean([*scores(found).values()]),
    'inside': lambda _, found: format_inside(found),
    **{
        f'inside {number + 1}': lambda _, found, number=number: format_inside(
            found, number
        )
        for number in range(6)
    },
    'seeds': lambda _, found: str(len(found)),
}


def table_of(rows: Iterable[Training], columns: Sequence[str], results: Results) -> str:
    """A table of README.md."""
    lines = []
    for training in rows:
        network, found = NETWORKS[training.network], found_of(results, training)
        label = f'[{network.title}](configs/{network.config.name})'
        if training.lr != LR and 'learning rate' not in columns:
            label += f', learning rate {format_lr(training.lr)}'
        if training.length > 1:
            label += f', {training.length} times the steps'
        cells = [COLUMNS[name](training, found) for name in columns]
        lines.append([label, *cells])
    return format_table(['network', *columns], lines)


def rows_of(experiment: str) -> list[Training]:
    """The trainings of an experiment that depends on no other."""
    return [*dict.fromkeys(run.training for run in EXPERIMENTS[experiment]({}))]


def looks_at_digit(results: Results) -> str:
    """All networks of README.md that have points."""
    rows = dict.fromkeys(row for name in 'abcdegh' for row in rows_of(name))
    rows = [row for row in rows if not row.network.startswith('vit')]
    columns = ['px', *(f'inside {number}' for number in range(1, 7)), 'seeds']
    return table_of(rows, columns, results)


def controls(results: Results) -> str:
    """What is the movement worth?"""
    reference = scores(found_of(results, Training('demo_psvit')))
    rows = []
    for name in CONTROLS:
        found = found_of(results, Training(name))
        ours = scores(found)
        difference = '' if name == CONTROLS[0] else format_difference(ours, reference)
        shares = [percent(share(found, key)) for key in ('drift', 'follows', 'inside')]
        mean = format_mean([*ours.values()])
        rows.append([NETWORKS[name].title, mean, difference, *shares, len(ours)])
    header = ['network', 'top-1', 'to the first', 'common to all', 'of the image']
    return format_table([*header, 'in the box', 'seeds'], rows)


def where(results: Results) -> str:
    """Where the points are in each iteration."""
    rows = []
    for name in CONTROLS[:2]:
        found = found_of(results, Training(name))
        for iteration in range(4):
            keys = ('inside', 'shifted', 'static', 'drift', 'follows')
            shares = [percent(share(found, key, iteration)) for key in keys]
            rows.append([f'{NETWORKS[name].title}, iteration {iteration + 1}', *shares])
    header = ['', 'in the box', 'grid shifted', 'grid moved']
    return format_table([*header, 'common to all', 'of the image'], rows)


def over_time(results: Results) -> str:
    """Where the points are while a network learns."""
    groups = [found_of(results, Training(name)).values() for name in CONTROLS[:2]]
    steps = {point['step'] for group in groups for r in group for point in r['curve']}
    rows = []
    for step in sorted(steps):
        row = [step]
        for group in groups:
            curve = [
                p for result in group for p in result['curve'] if p['step'] == step
            ]
            row.append(percent(each['accuracy'] / 100 for each in curve))
            for key in ('follows', 'inside'):
                row.append(percent(each[key][-1] for each in curve))
        rows.append(row)
    names = ('top-1', 'of the image', 'in the box')
    header = ['step', *names, *(f'{name}, centred' for name in names)]
    return format_table(header, rows)


def elastic(results: Results, length: float = 1) -> str:
    """One network for all numbers of points, against one for each.

    Args:
        results (Results): All results.
        length (float): Of the elastic training, and of that with 6 points per side,
            which is tested with other numbers. Defaults to 1, that of all others.
    """

    def at(training: Training, count: int) -> dict[int, float]:
        """Top-1 of a training at a number of points, by seed."""
        found = found_of(results, training)
        return {s: result['at_points'][str(count)] for s, result in found.items()}

    rows, fixed = [], Training('demo_psvit', length=length)
    for count in POINTS:
        ours = at(Training('demo_elastic', length=length), count)
        own = Training('demo_psvit' if count == 6 else f'demo_n{count}')
        row = [count, format_mean([*ours.values()])]
        for other in (at(own, count), at(fixed, count)):
            row += [format_mean([*other.values()]), format_difference(ours, other)]
            row.append(len(ours.keys() & other.keys()))
        rows.append(row)
    at_six = 'trained at 6' + ', as long' * (length > 1)
    difference = ['elastic less that', 'seeds']
    header = ['points per side', 'elastic', 'trained at it', *difference]
    return format_table([*header, at_six, *difference], rows)


def rates(results: Results) -> str:
    """Which learning rate suits which network."""
    rows = []
    for name in LONG:
        tried = at_rates(name, results)
        cells = [f'{tried[lr]:.1f}' if lr in tried else '' for lr in RATES]
        rows.append([NETWORKS[name].title, *cells])
    return format_table(['network', *map(format_lr, RATES)], rows)


def long(results: Results) -> str:
    """Long schedules and equal cost, at all learning rates that there are."""
    tried = at_rates(LONG[0], results)
    best = max(tried, key=tried.get, default=LR)
    reference = scores(found_of(results, Training(LONG[0], lr=best, length=5)))
    rows = []
    for name in (*LONG, *COST):
        for lr in RATES:
            row = [NETWORKS[name].title, format_lr(lr)]
            for length in (1, 5):
                found = found_of(results, Training(name, lr=lr, length=length))
                ours = scores(found)
                row += [format_mean([*ours.values()]), len(ours) or '']
            if any(row[2:]):
                is_other = (name, lr) != (LONG[0], best)
                row.append(format_difference(ours, reference) if is_other else '')
                row.append(format_mean(at_part(found, 1 / 4)))
                rows.append([*row, percent(share(found, 'inside'))])
    header = ['network', 'learning rate', 'top-1', 'seeds', '5 times the steps']
    header += ['seeds', 'to the first long one', 'after a quarter', 'in the box']
    return format_table(header, rows)


def canvases(results: Results) -> str:
    """Larger canvases of the demonstration."""
    rows = []
    grown = (t for t in results if t.canvas and NETWORKS[t.network].config == DEMO)
    order = sorted(grown, key=lambda t: (t.canvas, GROWN.index(t.network), t.lr))
    for training in order:
        found = found_of(results, training)
        cells = [format_mean(at_part(found)), format_mean([*scores(found).values()])]
        cells += [percent(share(found, 'inside')), len(found)]
        setting = [training.canvas, format_lr(training.lr)]
        rows.append([NETWORKS[training.network].title, *setting, *cells])
    header = ['network', 'px', 'learning rate', 'half', 'end', 'in the box', 'seeds']
    return format_table(header, rows)


def describe_runs(results: Results, folder: Path) -> str:
    """Commits, versions, machines and dates of the networks of a folder's configs."""
    found = [
        result
        for training, by_seed in results.items()
        if NETWORKS[training.network].config.parent == folder
        for result in by_seed.values()
    ]
    lines = [f'{len(found)} trainings']
    for result in found:
        versions = (f'{key} {value}' for key, value in result['versions'].items())
        about = '{cores} cores, {cpu}, {system}'.format(**result['machine'])
        if 'gpu' in result['machine']:
            about += f', {result["machine"]["gpu"]}'
        code, date = result['code'], result['date']
        dirty = ' with uncommitted changes' * bool(code['dirty'])
        commit = f'commit `{code["commit"]}`{dirty}, {date}'
        lines.append(f'{commit}: {about}; {", ".join(versions)}')
    return '\n'.join(f'- {line}' for line in dict.fromkeys(lines))


def curve_figure(results: Results) -> Figure:
    """Accuracy while training, that of the long runs on the right."""
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for name, colour in COLOURS.items():
        for length, axes, line in ((1, left, '-'), (1, right, '-'), (5, right, '--')):
            found = found_of(results, Training(name, length=length))
            if not found:
                continue
            label = NETWORKS[name].title + f', {length} times the steps' * (length > 1)
            label = '_' * (axes is left) + label  # once in the legend
            steps, values = np.array(
                [
                    [(point['step'], point['accuracy']) for point in result['curve']]
                    for result in found.values()
                ]
            ).transpose(2, 0, 1)
            mean, deviation = values.mean(0), values.std(0, ddof=len(found) > 1)
            axes.plot(steps[0], mean, line, color=colour, label=label)
            band = mean - deviation, mean + deviation
            axes.fill_between(steps[0], *band, color=colour, alpha=0.2, lw=0)
    for axes in (left, right):
        axes.axhline(CHANCE, color='#999999', linewidth=0.8, linestyle=':')
        axes.set(xlabel='training steps', ylabel='top-1, %', ylim=(0, 100))
        axes.grid(color='#e6e6e6', linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
    # Below: there is no room between the curves.
    figure.legend(loc='outside lower center', ncols=3, fontsize=8, frameon=False)
    return figure


HALF_END = ('half', 'end', 'seeds')
LETTERS = {  # the columns of README.md's tables
    **dict.fromkeys('abcd', HALF_END),
    'e': ('parameters', *HALF_END),
    'g': ('px', *HALF_END),
    'h': ('learning rate', 'half', 'end', 'inside', 'seeds'),
}
# What fills the places in each page.
PAGES: dict[Path, dict[str, Callable[[Results], str]]] = {
    HERE / 'README.md': {
        **{
            name: lambda results, name=name, columns=columns: table_of(
                rows_of(name), columns, results
            )
            for name, columns in LETTERS.items()
        },
        'inside': looks_at_digit,
        'runs': lambda results: describe_runs(results, MINIATURE),
    },
    HERE / 'looking.md': {
        'controls': controls,
        'where': where,
        'time': over_time,
        'rates': rates,
        'long': long,
        'canvas': canvases,
        'looking runs': lambda results: describe_runs(results, DEMO.parent),
    },
    ROOT / 'docs' / 'elastic.md': {
        'elastic': elastic,
        'elastic, longer': lambda results: elastic(results, 1.5),
    },
}


def fill_in(text: str, blocks: Mapping[str, str]) -> str:
    """Replace what is between the comments of each block that a page has."""
    for name, block in blocks.items():
        begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->\n'
        before, found, rest = text.partition(begin)
        if found:
            text = f'{before}{begin}{block}\n{end}{rest.split(end, 1)[1]}'
    return text


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    default = HERE / 'results'
    parser.add_argument('out', type=Path, nargs='?', default=default, help='results')
    out = parser.parse_args().out.resolve()
    results = read_results(out)
    if out == default:
        folder = HERE
        for page, blocks in PAGES.items():
            made = {name: block(results) for name, block in blocks.items()}
            with write_atomically(page) as temporary:
                temporary.write_text(fill_in(page.read_text(), made))
    else:
        folder, configs = out, os.path.relpath(MINIATURE, out)
        blocks = {name: made[name] for made in PAGES.values() for name in made}
        parts = [f'## {name}\n\n{block(results)}\n' for name, block in blocks.items()]
        text = '\n'.join(parts).replace('](configs/', f']({configs}/')
        with write_atomically(out / 'tables.md') as temporary:
            temporary.write_text(text)
    with write_atomically(folder / 'curves.png') as temporary:
        # Without the version, the same figure gives the same file.
        curve_figure(results).savefig(temporary, metadata={'Software': None})


if __name__ == '__main__':
    main()
