"""pi0.5 at its published size, in bf16, on the CPU."""

import subprocess
import sys

import pytest

MEMORY_GIB = 24

ONE_INFERENCE = """
import resource, time, torch
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import PI05

begin = time.perf_counter()
model = load_model(PI05, random_tensors(PI05, dtype=torch.bfloat16), torch.bfloat16)
built = time.perf_counter()
with torch.inference_mode():
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    tokens = torch.randint(0, PI05.vocab, (1, 50))
    noise = torch.randn(1, PI05.horizon, PI05.action_dim)
    actions = model.denoise(noise, model.prefill(model.see(images), tokens), model.flow_table(PI05.steps))
ended = time.perf_counter()
assert actions.shape == noise.shape and actions.isfinite().all() and not torch.equal(actions, noise)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f'full-size pi0.5, bf16, 2 views, 50 tokens, {torch.get_num_threads()} threads: built in '
      f'{built - begin:.0f} s, one inference {ended - built:.0f} s, peak memory {peak:.1f} GiB')
assert peak < %d
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_size_pi05_runs_within_the_memory_of_a_workstation():
    command = [sys.executable, '-c', ONE_INFERENCE % MEMORY_GIB]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    print(process.stdout)
    assert process.returncode == 0, process.stderr
