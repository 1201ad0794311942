# Copyright (c) mmpsvit contributors.
"""Writes the page: tables, pictures, and what they were computed with."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import numpy as np
from analysis_tools.get_flops import analyse

from mmpsvit.guard.files import AtomicBackend

from .jobs import Folders
from .plan import (
    CANVASES,
    CLUTTER,
    CONTROLS,
    EXPERIMENTS,
    HIGH_LR,
    LONG,
    LR,
    MAIN,
    NETWORKS,
    Budget,
    Point,
    Run,
    describe_budget,
    format_lr,
    load_config,
    num_clutter,
)
from .plots import (
    CHANCE,
    Results,
    accuracies,
    accuracy_figure,
    curve_figure,
    sampling_rows,
    save_figure,
    spread,
)
from .results import (
    WorkDir,
    better_control,
    read_json,
    read_result,
    read_results,
)

MISSING = 'missing'


def write_report(budget: Budget, folders: Folders) -> Path:
    """Write the page and its pictures from the results that there are.

    Args:
        budget: What all runs have in common.
        folders: Where everything lies. The picture of the points also needs the data
            set and the checkpoint of a run; without them, the old one stays.

    Returns:
        The page.

    Raises:
        JobError: If a result is broken or has other settings.
    """
    results = collect(budget, folders.out)
    half, end = budget.steps // 2, budget.steps
    cfg = load_config(Point('psvit'), end)
    text = Template(Path(__file__).with_name('page.md').read_text()).substitute(
        tokens=cfg.num_points**2,
        canvas=CANVASES[0],
        clutter=CLUTTER,
        num_train=budget.num_train,
        num_val=budget.num_val,
        chance=CHANCE,
        steps=end,
        lr=format_lr(cfg.lr),
        high_lr=format_lr(HIGH_LR),
        batch=cfg.train_dataloader.batch_size,
        command=' '.join(['python tools/reproduce_mini.py', *describe_budget(budget)]),
        interpretation=_interpretation(folders.out),
        table_a=_accuracy_table(results, _points_of('a', results), half, end),
        table_b=_accuracy_table(results, _points_of('b', results), half, end),
        table_c=_accuracy_table(results, EXPERIMENTS['c'].points, half, end),
        table_d=_accuracy_table(results, EXPERIMENTS['d'].points, half, end),
        table_e=_accuracy_table(results, EXPERIMENTS['e'].points, half, end, True),
        table_f=_cost_table(budget, folders.speed),
        speed=_about_speed(folders.speed),
        table_g=_canvas_table(results, half, end),
        table_h=_lr_table(results, half, end),
        table_inside=_inside_table(results),
        made_with=_made_with(results),
        **_pictures(results, budget, folders),
    )
    page = folders.out / 'README.md'
    AtomicBackend().put_text(text, page)
    return page


def collect(budget: Budget, out: Path) -> Results:
    """Read all results of all points, those of points without any included."""
    points = [p for experiment in EXPERIMENTS.values() for p in experiment.points]
    points += [Point('vit', length=LONG)]
    points += [Point(better_control(out, budget) or CONTROLS[0], length=LONG)]
    return {point: read_results(out, point, budget) for point in points}


def _points_of(letter: str, results: Results) -> list[Point]:
    """The points of an experiment, and the long runs of its networks."""
    points = list(EXPERIMENTS[letter].points)
    names = [point.network for point in points]
    return points + [p for p in results if p.length > 1 and p.network in names]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ['---'] * left + ['---:'] * (len(head) - left)
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


def _mean(values: np.ndarray, digits: int = 1) -> str:
    """Mean and standard deviation, in percent."""
    if not len(values):
        return MISSING
    text = f'{values.mean():.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {spread(values):.{digits}f}'


def _expected(point: Point) -> int:
    """How many seeds a point has by default."""
    seeds = [each.seeds for each in EXPERIMENTS.values() if point in each.points]
    return max(seeds, default=1)


def _seeds(results: Results, point: Point) -> str:
    found, expected = len(results[point]), _expected(point)
    return str(found) if found >= expected else f'{found} of {expected}'


def _link(name: str) -> str:
    path = f'../../configs/cluttered_digits/miniature/{name}.py'
    return f'[{NETWORKS[name]}]({path})'


def _label(point: Point) -> str:
    """The network of a point, and how its training differs from that of the others."""
    label = _link(point.network)
    if point.lr != LR:
        label += f', learning rate {format_lr(point.lr)}'
    if point.length > 1:
        label += f', {point.length} times the steps'
    return label


def _accuracy_table(
    results: Results,
    points: Sequence[Point],
    half: int,
    end: int,
    with_parameters: bool = False,
) -> str:
    head = ['network', f'step {half}', f'step {end}', 'seeds']
    rows = []
    for point in points:
        name = _label(point)
        if point.length > 1:
            name += ' (its half and end)'
        found = results[point]
        rows.append(
            [
                name,
                *(_mean(accuracies(found, when)) for when in ('half', 'end')),
                _seeds(results, point),
            ]
        )
        if with_parameters:
            rows[-1].insert(1, f'{found[0]["parameters"]:,}' if found else MISSING)
    if with_parameters:
        head.insert(1, 'parameters')
    return _table(head, rows)


def _canvas_table(results: Results, half: int, end: int) -> str:
    head = ['network', 'step']
    head += [f'{c} px, {num_clutter(c)} fragments' for c in CANVASES]
    rows = []
    for name in MAIN:
        found = [results[Point(name, canvas)] for canvas in CANVASES]
        for when, step in (('half', half), ('end', end)):
            cells = [_mean(accuracies(each, when)) for each in found]
            rows.append([_link(name), str(step), *cells])
        cells = [_seeds(results, Point(name, canvas)) for canvas in CANVASES]
        rows.append([_link(name), 'seeds', *cells])
    return _table(head, rows)


def _lr_table(results: Results, half: int, end: int) -> str:
    """The networks of experiment h at both learning rates."""
    rows = []
    for name in MAIN:
        for lr in (LR, HIGH_LR):
            point = Point(name, lr=lr)
            found = results[point]
            cells = [_mean(accuracies(found, when)) for when in ('half', 'end')]
            cells.append(_inside_at_end(found))
            rows.append([_link(name), format_lr(lr), *cells, _seeds(results, point)])
    head = ['network', 'learning rate', f'step {half}', f'step {end}', 'inside, %']
    return _table([*head, 'seeds'], rows)


def _inside_at_end(found: Sequence[dict]) -> str:
    """The share of the last iteration's points in the digit's box."""
    if found and found[0]['inside'] is None:
        return 'none'
    return _mean(100 * np.array([result['inside'][-1] for result in found]), 2)


def _inside_table(results: Results) -> str:
    rows = []
    for point, found in results.items():
        if not found or found[0]['inside'] is None:
            continue
        shares = 100 * np.array([result['inside'] for result in found])
        cells = [_mean(column, 2) for column in shares.T]
        # The start grid is the same for all seeds.
        cells[0] = f'{shares[0, 0]:.2f}'
        rows.append([_label(point), str(point.canvas), *cells, str(len(found))])
    if not rows:
        return MISSING
    most = max(len(row) for row in rows)
    rows = [[*row[:-1], *[''] * (most - len(row)), row[-1]] for row in rows]
    head = ['network', 'px', 'start grid, %']
    head += [f'iteration {t}, %' for t in range(2, most - 2)]
    return _table([*head, 'seeds'], rows)


def _cost_table(budget: Budget, speed: Path) -> str:
    speeds = (read_json(speed) or {}).get('images_per_second', {})
    rows = []
    for name in NETWORKS:
        cfg = load_config(Point(name), budget.steps)
        parameters, macs = analyse(cfg, (CANVASES[0], CANVASES[0]))
        images = f'{speeds[name]:.0f}' if name in speeds else MISSING
        rows.append([_link(name), f'{parameters:,}', f'{macs / 1e6:.1f}', images])
    return _table(['network', 'parameters', 'million multiply-adds', 'images/s'], rows)


def _about_speed(speed: Path) -> str:
    about = read_json(speed)
    if about is None:
        return 'Images per second have not been measured yet.'
    return (
        'Images per second of inference by `tools/benchmarks/benchmark_speed.py`: '
        f'batch {about["batch_size"]}, {about["threads"]} thread, median of '
        f'{about["runs"]} interleaved rounds, {about["date"]}.'
    )


def _interpretation(out: Path) -> str:
    """What a person wrote about the results, if anybody did."""
    path = out / 'interpretation.md'
    if not path.exists():
        return ''
    return f'## What this says\n\n{path.read_text().strip()}\n\n'


def _pictures(results: Results, budget: Budget, folders: Folders) -> dict[str, str]:
    """Draw the pictures; return the Markdown that shows each."""
    shown = {'curves': '', 'accuracy': '', 'points': ''}
    if any(results.values()):
        figures = {
            'curves': curve_figure(results, budget.steps),
            'accuracy': accuracy_figure(results, budget.steps),
        }
        for name, figure in figures.items():
            save_figure(figure, folders.out / f'{name}.png')
        shown['curves'] = '![Accuracy against training steps](curves.png)'
        shown['accuracy'] = '![Accuracy against N, n and canvas](accuracy.png)'
    path = folders.out / 'points.png'
    run = Run(Point('psvit'), 0, budget)
    checkpoint = WorkDir(folders.work, run).checkpoint
    boxes = folders.data / str(run.point.canvas) / 'val/boxes.json'
    if read_result(folders.out, run) and checkpoint.exists() and boxes.exists():
        cfg = load_config(run.point, budget.steps, folders.data)
        save_figure(sampling_rows(cfg, checkpoint), path)
    if not path.exists():
        shown['points'] = (
            f'The picture of the points is {MISSING}: it needs the last checkpoint of '
            f'`{run.name}` and the data set.'
        )
    else:
        shown['points'] = (
            '![Sampling points of every iteration](points.png)\n\n'
            f'{NETWORKS["psvit"]}, seed 0, on six validation images, evenly spread '
            'over the folder: a row for each iteration. White box: the digit. White: '
            'the start grid. Yellow: the paths so far. Pink: the points of the row.'
        )
    return shown


def _made_with(results: Results) -> str:
    """Commits, versions, machines and dates of all results, and their time."""
    every = [result for found in results.values() for result in found]
    if not every:
        return MISSING
    commits = [
        f'`{state["commit"]}`'.replace('`None`', 'unknown')
        + (' with uncommitted changes' if state['dirty'] else '')
        for result in every
        for state in result['code']
    ]
    machines = ['{cores} cores, {cpu}, {system}'.format(**r['machine']) for r in every]
    versions = [
        ', '.join(f'{key} {value}' for key, value in result['versions'].items())
        for result in every
    ]
    hours = sum(r['seconds_per_step'] * r['settings']['steps'] for r in every) / 3600
    dates = sorted(result['date'] for result in every)
    lines = {
        'runs': f'{len(every)}, {hours:.1f} hours of one core for the training steps',
        'code': '; '.join(dict.fromkeys(commits)),
        'versions': '; '.join(dict.fromkeys(versions)),
        'machine': '; '.join(dict.fromkeys(machines)),
        'date': dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}',
    }
    return '\n'.join(f'- {key}: {value}' for key, value in lines.items())
