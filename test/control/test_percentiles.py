"""The percentiles that nodes report."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from flashrt_ros.percentiles import percentiles

FINITE = st.floats(-1e9, 1e9)


@given(st.lists(FINITE, min_size=1, max_size=50), st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_they_are_those_of_numpy(values, ranks):
    expected = np.percentile(values, ranks)
    assert percentiles(values, ranks) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_they_import_nothing():
    program = (
        'import sys; from flashrt_ros.percentiles import percentiles; before = set(sys.modules)\n'
        'percentiles([3.0, 1.0, 2.0], (50, 99)); print(sorted(set(sys.modules) - before))'
    )
    assert subprocess.check_output([sys.executable, '-c', program], text=True) == '[]\n'
