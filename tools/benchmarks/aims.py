# Copyright (c) mmpsvit contributors.
"""Hold what run_on_gpu.sh has measured against the aims: aims.py OUT_DIR."""

import json
import sys
from pathlib import Path

EAGER = ('eager',)
GRAPHS = ('CUDA graphs', 'compiled, CUDA graphs')
COMPILED = ('compiled', 'compiled, CUDA graphs')


def read(folder: Path, name: str) -> list[dict]:
    """The rows of a report, none if it was not written."""
    path = folder / f'{name}.json'
    return json.loads(path.read_text())['results'] if path.exists() else []


def ratio(rows: list[dict], modes: tuple[str, ...], model: str, peer: str) -> str:
    """Images/s of a model to its peer's, each in its fastest dtype and mode.

    With mmcv's kernel, and with Triton's if that was measured as well.
    """

    def fastest(name: str) -> dict | None:
        of_name = [r for r in rows if r['mode'] in modes and r['model'] == name]
        return min(of_name, key=lambda row: row['milliseconds'], default=None)

    theirs, found = fastest(peer), []
    for name in (model, f'{model}+triton'):
        ours = fastest(name)
        if ours and theirs:
            value = theirs['milliseconds'] / ours['milliseconds']
            words = ', '.join(
                f'{row["milliseconds"]:.2f} ms {row["dtype"]} {row["mode"]}'
                for row in (ours, theirs)
            )
            kernel = 'Triton: ' if name != model else ''
            found.append(f'{kernel}{value:.2f} ({words})')
    return '; '.join(found) or 'not measured'


def aims_of(folder: Path) -> list[dict]:
    """The rows of the table."""
    inference = [*read(folder, 'inference'), *read(folder, 'compiled')]
    latency = read(folder, 'latency')
    training = [*read(folder, 'training'), *read(folder, 'training_compiled')]
    table = [
        ('inference, B/14 to DeiT-B, CUDA graphs', inference, GRAPHS, 'b14', 1.45, 2.0),
        ('inference, B/14 to DeiT-B, eager', inference, EAGER, 'b14', 1.28, 1.6),
        ('inference, Ti/14 to DeiT-S, eager', inference, EAGER, 'ti14', 0.81, 1.3),
        ('inference, Ti/14 to DeiT-S, CUDA graphs', inference, GRAPHS, 'ti14', '', 1.3),
        ('training, B/14 to DeiT-B, compiled', training, COMPILED, 'b14', 1.27, 1.6),
        ('training, B/14 to DeiT-B, eager', training, EAGER, 'b14', 1.13, 1.3),
        ('training, eager in a CUDA graph', training, GRAPHS[:1], 'b14', '', ''),
        ('one image, B/14 to DeiT-B, CUDA graphs', latency, GRAPHS, 'b14', '', 1.0),
        ('one image, B/14 to DeiT-B, eager', latency, EAGER, 'b14', 0.54, ''),
    ]
    peers = {'b14': 'deit-b', 'ti14': 'deit-s'}
    rows = [
        {
            'what': what,
            'measured': ratio(rows, modes, model, peers[model]),
            'on 2026-11-26': before,
            'aim': aim,
        }
        for what, rows, modes, model, before, aim in table
    ]

    def add(what: str, measured: str, before: str, aim: str) -> None:
        cells = (what, measured or 'not measured', before, aim)
        rows.append(dict(zip(rows[0], cells, strict=True)))

    for name, kernel, aim in (
        ('sampling_share', "mmcv's kernel", '9 %'),
        ('sampling_share_triton', "Triton's", '4 %'),
    ):
        for row in read(folder, name):
            if row['part'] == 'sampling':
                what = f'share of sampling in an eager training step, {kernel}'
                add(what, f'{row["percent"]:.1f} %', '13 %', aim)
    loops = [
        (name, row) for name in ('loop', 'loop_compiled') for row in read(folder, name)
    ]
    for name, row in loops:
        what = f'training {name}, {row["data"]}, batch {row["batch_size"]}'
        speed = f'{row["images_per_second"]:.0f} images/s'
        if row['data'] == 'memory' and row['batch_size'] > 1:
            what += ', to the bare step'
            add(what, f'{row["to_bare_step"]:.2f} ({speed})', '0.3', '0.9')
        elif row['data'] == 'jpeg':
            loader = f'{row["loader_per_worker"]:.0f} a worker, loader alone'
            add(what, f'{speed}, {row["workers"]} workers; {loader}', '', 'per core')
    for row in training:
        if (row['model'], row['mode']) == ('b14', 'eager'):
            what = f'peak memory of an eager training step, {row["dtype"]}'
            add(what, f'{row["peak_MiB"] / 1024:.2f} GiB', '7.2 GiB', 'not more')
    return rows


if __name__ == '__main__':
    found = aims_of(Path(sys.argv[1]))
    for cells in (found[0], ['---'] * 4, *(row.values() for row in found)):
        print(f'| {" | ".join(map(str, cells))} |')
