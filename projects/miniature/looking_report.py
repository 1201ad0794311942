# Copyright (c) mmpsvit contributors.
"""Write the tables of looking.md and docs/elastic.md from the results that there are.

python projects/miniature/looking_report.py
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

from collections.abc import Iterable, Sequence

import numpy as np
from looking import (
    CONTROLS,
    COST,
    LONG,
    NETWORKS,
    POINTS,
    RATES,
    RATES_SEED,
    Training,
    best_rate,
    read_results,
)
from plan import HERE, format_lr
from report import fill_in, format_mean

from mmpsvit.guard import write_atomically

Results = dict[Training, dict[int, dict]]  # by training and seed


def by_training(results: Iterable[dict]) -> Results:
    """Results by what was trained."""
    found = {}
    for result in results:
        training = Training(
            *(result[key] for key in ('network', 'lr', 'length', 'canvas'))
        )
        found.setdefault(training, {})[result['seed']] = result
    return found


def accuracy(result: dict) -> float:
    """Top-1 at the end of a training, in percent."""
    return result['curve'][-1]['accuracy']


def format_difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
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


def table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def last(found: dict[int, dict], key: str, iteration: int = -1) -> str:
    """A share at the end of the trainings, in percent."""
    return percent(result['curve'][-1][key][iteration] for result in found.values())


def controls(results: Results) -> str:
    """Question 1."""
    reference = results[Training('psvit')]
    rows = []
    for name in CONTROLS:
        found = results.get(Training(name), {})
        scores = {seed: accuracy(result) for seed, result in found.items()}
        theirs = {seed: accuracy(result) for seed, result in reference.items()}
        difference = '' if name == 'psvit' else format_difference(scores, theirs)
        shares = [last(found, key) for key in ('drift', 'follows', 'inside')]
        score = format_mean(list(scores.values()))
        rows.append([NETWORKS[name].title, score, difference, *shares, len(found)])
    header = ['network', 'top-1', 'to the first', 'common to all', 'of the image']
    return table([*header, 'in the box', 'seeds'], rows)


def where(results: Results) -> str:
    """Question 2: by iteration."""
    rows = []
    for name in ('psvit', 'centered'):
        found = results[Training(name)]
        for iteration in range(4):
            keys = ('inside', 'shifted', 'static', 'drift', 'follows')
            shares = [last(found, key, iteration) for key in keys]
            rows.append([f'{NETWORKS[name].title}, iteration {iteration + 1}', *shares])
    header = ['', 'in the box', 'grid shifted', 'grid moved']
    return table([*header, 'common to all', 'of the image'], rows)


def over_time(results: Results) -> str:
    """Question 2: by training step."""
    found = results[Training('psvit')].values()
    centered = results[Training('centered')].values()
    rows = []
    for number, point in enumerate(next(iter(found))['curve']):
        row = [point['step']]
        for group in (found, centered):
            curve = [result['curve'][number] for result in group]
            row.append(f'{np.mean([each["accuracy"] for each in curve]):.1f}')
            for key in ('follows', 'inside'):
                row.append(percent(each[key][-1] for each in curve))
        rows.append(row)
    names = ('top-1', 'of the image', 'in the box')
    return table(['step', *names, *(f'{name}, centred' for name in names)], rows)


def trained_at(count: int) -> Training:
    """The training with one number of points per side."""
    return Training('psvit' if count == 6 else f'n{count}')


def elastic(results: Results) -> str:
    """One network for all numbers of points, against one for each."""

    def at(training: Training, count: int) -> dict[int, float]:
        """Top-1 of a training at a number of points, by seed."""
        found = results.get(training, {})
        return {s: result['at_points'][str(count)] for s, result in found.items()}

    rows = []
    for count in POINTS:
        ours = at(Training('elastic'), count)
        own, other = at(trained_at(count), count), at(trained_at(6), count)
        scores = [format_mean(list(each.values())) for each in (ours, own, other)]
        differences = [format_difference(ours, each) for each in (own, other)]
        pairs = [len(ours.keys() & each.keys()) for each in (own, other)]
        columns = zip(scores[1:], differences, pairs, strict=True)
        rows.append(
            [count, scores[0], *(cell for column in columns for cell in column)]
        )
    header = ['points per side', 'elastic', 'trained at it', 'elastic less that']
    return table([*header, 'seeds', 'trained at 6', 'elastic less that', 'seeds'], rows)


def rates(results: Results) -> str:
    """Which learning rate suits which network."""
    rows = []
    for name in (*LONG, *COST):
        found = [results.get(Training(name, lr=lr), {}).get(RATES_SEED) for lr in RATES]
        cells = [f'{accuracy(each):.1f}' if each else '' for each in found]
        rows.append([NETWORKS[name].title, *cells])
    return table(['network', *map(format_lr, RATES)], rows)


def at_best_rates(results: Results) -> str:
    """Questions 4 and 5."""
    flat = [each for found in results.values() for each in found.values()]
    rows = []
    for name in (*LONG, *COST):
        lr = best_rate(name, flat)
        cells = []
        for length in (1, 5):
            found = results.get(Training(name, lr=lr, length=length), {})
            scores = [accuracy(each) for s, each in found.items() if s != RATES_SEED]
            cells += [format_mean(scores) if scores else '', len(scores)]
        rows.append([NETWORKS[name].title, format_lr(lr), *cells])
    header = ['network', 'learning rate', 'top-1', 'seeds']
    return table([*header, '5 times the steps', 'seeds'], rows)


def write_tables() -> None:
    """Fill the tables that the pages have."""
    results = by_training(read_results())
    pages = {
        HERE / 'looking.md': {
            'controls': controls,
            'where': where,
            'time': over_time,
            'rates': rates,
            'long': at_best_rates,
        },
        HERE.parents[1] / 'docs' / 'elastic.md': {'elastic': elastic},
    }
    for page, makers in pages.items():
        text = page.read_text()
        made = {
            name: make(results)
            for name, make in makers.items()
            if f'<!-- {name} -->' in text
        }
        with write_atomically(page) as temporary:
            temporary.write_text(fill_in(text, made))


if __name__ == '__main__':
    write_tables()
