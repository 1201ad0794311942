# Copyright (c) mmpsvit contributors.
"""The notebook runs from top to bottom, with and without a trained network."""

import nbformat
import pytest

nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
NOTEBOOK = 'sampling.ipynb'


def run(folder) -> str:
    """Run the notebook of a folder; return what it printed."""
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources=dict(metadata=dict(path=str(folder)))
    )
    client.execute()
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == 'code'
        for output in cell.outputs
    ]
    pictures = sum('image/png' in output.get('data', ()) for output in outputs)
    assert pictures == 3
    # Rich, the inferencer's progress bar, now and then goes on to catch what is
    # printed, and displays it.
    return ''.join(
        output.get('text', '') + output.get('data', {}).get('text/plain', '')
        for output in outputs
    )


def test_committed_without_outputs(root):
    notebook = nbformat.read(root / 'demo' / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert code
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None


def test_with_a_trained_network(checkout):
    printed = run(checkout / 'demo')
    assert 'tokens (1, 281, 192) - the class token and (14, 20)' in printed
    # The offsets of a new network are zero.
    assert 'largest move in pixels 0.0' in printed
    assert 'the network is trained' in printed


def test_without_one(checkout):
    (checkout / 'work_dirs' / 'demo' / 'last_checkpoint').unlink()
    (checkout / 'data').rename(checkout / 'elsewhere')
    files = sorted(checkout.rglob('*'))
    assert 'the network is UNTRAINED, run `make demo` first' in run(checkout / 'demo')
    # It leaves no files behind.
    assert sorted(checkout.rglob('*')) == files
