"""The engine at published sizes against the plain model in fp32, on random weights and observations."""

import pytest
import torch

from benchmarks.accuracy import measure
from benchmarks.policies import SPECS

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

OBSERVATIONS = 20


@pytest.mark.parametrize('family', list(SPECS))
def test_both_precisions_stay_near_the_plain_model(library, family):
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip('the plain model in fp32 beside the engine takes 40 GB of GPU memory')
    report = measure(family, ['bf16', 'fp8'], OBSERVATIONS)
    for name, summary in report.items():
        print(family, name, summary)
    plain, bf16, fp8 = (report[name] for name in ('plain bf16', 'engine bf16', 'engine fp8'))
    assert bf16['actions'] < 1.5 * plain['actions']
    assert bf16['worst_cosine'] > 0.9999
    assert fp8['worst_cosine'] > 0.996
