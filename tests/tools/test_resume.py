# Copyright (c) mmpsvit contributors.
"""Trainings that are killed and resumed end as if they had been left alone."""

import os

import pytest


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs processes that can fork')
def test_killed_trainings_end_the_same(run_tool):
    """By epochs with a data worker, by iterations, and by epochs in two processes."""
    output = run_tool('tests/soak/soak_resume.py', '--kills', 3)
    # With the seeds of the moments.
    print(output)
    assert output.count(': identical\n') == 3
    assert '3 kills, 0 failures' in output
