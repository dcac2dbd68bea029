"""The CUDA policy from a checkpoint directory, against the CPU policy of the same directory."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pictures.scenes import random_frame

from flashrt_ros import tracing
from flashrt_ros.configuration.tracing import Tracing
from flashrt_ros.engine import backend
from flashrt_ros.engine.backend import NOT_PREPARED, CudaPolicy, check_sizes, load
from flashrt_ros.engine.cuda.compiler import cache_directory
from flashrt_ros.errors import BackendError, CheckpointError, ObservationError
from flashrt_ros.models.backend import load as load_cpu
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.pictures import CameraImage, Framing
from flashrt_ros.policy import STAGES, Guidance, PolicyOptions, Rehearses, SeesAhead

gpu = pytest.mark.gpu
CUDA = PolicyOptions(device='cuda', precision='bf16', seed=0)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Its packed weights are cached for one test alone; compiled kernels stay where they are."""
    kernels, cache = cache_directory() / 'kernels', tmp_path / 'cache' / 'flashrt_ros'
    kernels.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True)
    (cache / 'kernels').symlink_to(kernels)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return write_random_checkpoint(tmp_path / 'policy', NANO_PI05)


def observe(path, seed=0):
    from flashrt_ros.engine.calibration.measure import random_observations

    return random_observations(open_checkpoint(path), 1, seed)[0]


@gpu
def test_it_agrees_with_the_cpu_policy(library, checkpoint):
    policy, reference = load(checkpoint, CUDA), load_cpu(checkpoint, PolicyOptions())
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal((50, 32)).astype(np.float32)
        found, expected = (p.infer(observe(checkpoint, seed), noise) for p in (policy, reference))
        error = np.linalg.norm(found.actions - expected.actions) / np.linalg.norm(expected.actions)
        assert error < 0.02
        assert tuple(found.timings) == STAGES
    own = {'device': 'cuda', 'precision': 'bf16', 'guidance_refusals': policy.info.guidance_refusals}
    assert policy.info == replace(reference.info, **own)


@gpu
def test_an_observation_begun_while_another_is_computed_changes_neither(library, checkpoint):
    policy = load(checkpoint, CUDA)
    observations = [observe(checkpoint, seed) for seed in range(6)]
    policy.reseed(5)
    alone = [policy.infer(o).actions for o in observations]
    policy.reseed(5)
    waiting, found = [], []
    for number, observation in enumerate(observations):
        waiting.append(policy.submit(policy.shrink(observation) if number % 2 else observation))
        if len(waiting) > 1:
            found.append(waiting.pop(0)())
    found.append(waiting.pop(0)())
    assert [set(p.timings) for p in found[:-1]] == [{'preprocess', 'graph', 'postprocess'}] * 5
    assert tuple(found[-1].timings) == STAGES
    for expected, prediction in zip(alone, found, strict=True):
        np.testing.assert_array_equal(prediction.actions, expected)
    # One that nobody waited for does not stand in the way.
    policy.submit(observations[0])
    policy.reseed(5)
    np.testing.assert_array_equal(policy.infer(observations[0]).actions, alone[0])


@gpu
def test_its_stages_are_marked_for_a_profiler(library, checkpoint, tmp_path):
    policy, observation = load(checkpoint, CUDA), observe(checkpoint)
    tracer = tracing.tracer_of(Tracing(to='file', folder=str(tmp_path)), 'policy')
    tracing.use(tracer)
    policy.infer(observation)
    tracing.use(None)
    tracer.finish()
    events = json.loads((tmp_path / 'policy.json').read_text())
    assert [event['name'] for event in events if event['ph'] == 'X'] == ['preprocess', 'graph', 'postprocess']


@gpu
@pytest.mark.parametrize('resize', ['pil', 'torch'])
def test_raw_frames_in_any_encoding_are_seen_as_the_cpu_sees_them(library, checkpoint, resize):
    policy = load(checkpoint, replace(CUDA, resize=resize))
    reference = load_cpu(checkpoint, PolicyOptions(resize=resize))
    noise, whole = np.zeros((50, 32), np.float32), observe(checkpoint)
    for name, width, height, framing in (
        ('rgb8', 640, 480, Framing()),
        ('nv12', 320, 240, Framing(180)),
        ('bayer_rggb16', 131, 77, Framing(90, 'vertical', (1, 2, 99, 70))),
    ):
        images = {
            view: CameraImage(random_frame(name, width, height, 4, seed=i), framing)
            for i, view in enumerate(policy.info.views)
        }
        found, expected = (p.infer(replace(whole, images=images), noise).actions for p in (policy, reference))
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


@gpu
def test_absent_views_are_left_out(library, checkpoint):
    policy, reference = load(checkpoint, CUDA), load_cpu(checkpoint, PolicyOptions())
    whole, noise = observe(checkpoint), np.zeros((50, 32), np.float32)
    for views in (policy.info.views[:1], policy.info.views[1:]):
        partial = replace(whole, images={view: whole.images[view] for view in views})
        found, expected = (p.infer(partial, noise).actions for p in (policy, reference))
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


@gpu
@pytest.mark.parametrize('method', ['identity', 'prefix', 'exact'])
def test_it_guides_as_the_cpu_policy(library, checkpoint, method):
    policy = load(checkpoint, replace(CUDA, trained_prefix=8, guidance=method))
    reference = load_cpu(checkpoint, PolicyOptions(trained_prefix=8))
    assert policy.info.guidance_refusals[method] == ''
    rng = np.random.default_rng(0)
    noise, actions = rng.standard_normal((50, 32)).astype(np.float32), rng.random((8, 6), dtype=np.float32)
    weights = np.linspace(1, 0, 8, dtype=np.float32) if method != 'prefix' else None
    guidance, observation = Guidance(method, actions, weights), observe(checkpoint)
    found, expected = (p.infer(observation, noise, guidance).actions for p in (policy, reference))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02
    assert method != 'prefix' or np.allclose(found[:8], actions, atol=1e-4)


@gpu
def test_guidance_that_cannot_be_followed_is_refused(library, checkpoint):
    policy = load(checkpoint, CUDA)
    assert 'not trained with a frozen prefix' in policy.info.guidance_refusals['prefix']
    actions = np.zeros((4, 6), np.float32)
    for guidance in (Guidance('prefix', actions), Guidance('identity', actions, np.full(4, 2.0, np.float32))):
        with pytest.raises(ObservationError):
            policy.infer(observe(checkpoint), guidance=guidance)
    assert np.isfinite(policy.infer(observe(checkpoint)).actions).all()


@gpu
def test_it_loads_again_after_being_closed(library, checkpoint):
    policy = load(checkpoint, CUDA)
    policy.close()
    with pytest.raises(BackendError, match='closed'):
        policy.infer(observe(checkpoint))
    assert load(checkpoint, CUDA).infer(observe(checkpoint)).actions.shape[0] == 50


@gpu
def test_fp8_needs_a_calibration_of_these_weights(library, checkpoint, tmp_path):
    from flashrt_ros.engine.calibration.measure import calibrate_checkpoint, random_observations

    options = replace(CUDA, precision='fp8')
    with pytest.raises(CheckpointError, match='needs activation scales'):
        load(checkpoint, options)
    calibrate_checkpoint(checkpoint, random_observations(open_checkpoint(checkpoint), 4))
    assert np.isfinite(load(checkpoint, options).infer(observe(checkpoint)).actions).all()
    other = write_random_checkpoint(tmp_path / 'other', NANO_PI05, seed=5)
    (other / 'flashrt_calibration.json').write_bytes((checkpoint / 'flashrt_calibration.json').read_bytes())
    with pytest.raises(CheckpointError, match='other weights'):
        load(other, options)


@gpu
def test_a_bad_observation_leaves_the_policy_usable(library, checkpoint):
    policy, good = load(checkpoint, CUDA), observe(checkpoint)
    with pytest.raises(ObservationError, match='not finite'):
        policy.infer(replace(good, state=np.full_like(good.state, np.nan)))
    assert np.isfinite(policy.infer(good).actions).all()


@gpu
def test_an_observation_refused_while_the_gpu_sees_changes_no_other(library, checkpoint):
    """Its pictures are seen before its prompt turns out to be too long."""
    policy, good, other = load(checkpoint, CUDA), observe(checkpoint), observe(checkpoint, 1)
    noise = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    expected = policy.infer(good, noise).actions
    for _ in range(3):
        with pytest.raises(ObservationError, match='tokens'):
            policy.infer(replace(other, prompt='fold the towel ' * 200))
        np.testing.assert_array_equal(policy.infer(good, noise).actions, expected)


def as_frames(observation):
    return replace(observation, images={v: CameraImage.of(x) for v, x in observation.images.items()})


@gpu
def test_pictures_seen_ahead_give_the_same(library, checkpoint):
    policy = load(checkpoint, CUDA)
    first, second = (as_frames(observe(checkpoint, seed)) for seed in range(2))
    noise = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    alone = [policy.infer(observation, noise).actions for observation in (first, second)]
    assert isinstance(policy, SeesAhead)
    assert not np.array_equal(*alone)
    for seen, inferred, expected in ((first, first, 0), (first, second, 1), (second, second, 1)):
        policy.see_ahead(seen.images)
        prediction = policy.infer(inferred, noise)
        np.testing.assert_array_equal(prediction.actions, alone[expected])
        assert min(prediction.timings.values()) > 0
    # Only once, and what comes of another state in between is that state's.
    policy.see_ahead(first.images)
    policy.infer(replace(first, state=second.state), noise)
    np.testing.assert_array_equal(policy.infer(second, noise).actions, alone[1])


@gpu
def test_pictures_may_be_seen_by_another_thread(library, checkpoint):
    policy = load(checkpoint, CUDA)
    first, second = (as_frames(observe(checkpoint, seed)) for seed in range(2))
    noise = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    alone = [policy.infer(observation, noise).actions for observation in (first, second)]
    for observation, expected in zip((first, second) * 5, alone * 5, strict=True):
        with ThreadPoolExecutor(1) as other:
            other.submit(policy.see_ahead, observation.images).result()
        np.testing.assert_array_equal(policy.infer(observation, noise).actions, expected)


@gpu
def test_what_follows_is_rehearsed_once_for_each_result_but_the_first(library, checkpoint, monkeypatch):
    monkeypatch.setattr('flashrt_ros.engine.patience.RUN_UP_S', 0.0)  # a nano policy takes less
    policy, observation = load(checkpoint, CUDA), as_frames(observe(checkpoint))
    noise = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    assert isinstance(policy, Rehearses)
    rehearsals, results = [], []
    policy.rehearse = lambda: rehearsals.append(len(results))
    for _ in range(4):
        results.append(policy.infer(observation, noise).actions)
    assert rehearsals == [1, 2, 3]
    for actions in results[1:]:
        np.testing.assert_array_equal(actions, results[0])


@gpu
def test_what_was_seen_ahead_and_is_refused_changes_no_other(library, checkpoint):
    policy, good = load(checkpoint, CUDA), as_frames(observe(checkpoint))
    noise = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    expected = policy.infer(good, noise).actions
    short = {v: replace(x, frame=replace(x.frame, data=x.frame.data[:-1])) for v, x in good.images.items()}
    for images, state, message in (
        (short, good.state, 'bytes'),
        (good.images, np.full_like(good.state, np.nan), 'not finite'),
        ({'nobody': next(iter(good.images.values()))}, good.state, 'no view'),
        ({}, good.state, 'no image'),
    ):
        policy.see_ahead(images)
        with pytest.raises(ObservationError, match=message):
            policy.infer(replace(good, images=images, state=state), noise)
        np.testing.assert_array_equal(policy.infer(good, noise).actions, expected)
    # Nobody asks for what was seen last.
    policy.see_ahead(good.images)
    policy.close()
    policy.see_ahead(good.images)


LOSES_THE_GPU = """
import sys
import torch
from pathlib import Path
from flashrt_ros.engine.backend import load
from flashrt_ros.engine.calibration.measure import random_observations
from flashrt_ros.errors import BackendError
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.pictures import CameraImage
from flashrt_ros.policy import PolicyOptions, load_policy

path, options = Path(sys.argv[1]), PolicyOptions(device='cuda', precision='bf16')
observation = random_observations(open_checkpoint(path), 1)[0]
policy = load(path, options)
policy.infer(observation)
torch.zeros(4, device='cuda')[torch.tensor([1 << 40], device='cuda')]  # an assertion on the device
for attempt in (lambda: policy.infer(observation), lambda: load(path, options)):
    try:
        attempt()
    except BackendError as error:
        print('refused:', error)
policy.see_ahead({view: CameraImage.of(image) for view, image in observation.images.items()})
policy.close()
print('on the CPU:', load_policy(path).infer(observation).actions.shape)
"""


@gpu
def test_a_lost_gpu_is_named_and_the_process_lives_on(library, checkpoint):
    command = [sys.executable, '-c', LOSES_THE_GPU, str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('refused: ') == 2, result.stdout
    assert result.stdout.count('the GPU failed') == 2
    assert 'restart the process' in result.stdout.lower()
    assert 'on the CPU: (50, 6)' in result.stdout


@gpu
def test_without_enough_memory_nothing_is_loaded(library, checkpoint, monkeypatch):
    monkeypatch.setattr('torch.cuda.mem_get_info', lambda index=0: (1 << 29, 80 << 30))
    with pytest.raises(BackendError, match=r'needs 1\.0 GiB .* has 0\.5 GiB free of 80\.0 GiB'):
        load(checkpoint, CUDA)


@gpu
def test_an_unknown_precision_is_refused(library, checkpoint):
    with pytest.raises(BackendError, match="cannot run precision 'fp32'"):
        load(checkpoint, replace(CUDA, precision='fp32'))


def test_without_a_gpu_nothing_is_loaded(monkeypatch, checkpoint):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(BackendError, match='finds no usable NVIDIA GPU'):
        backend.load(checkpoint, CUDA)


@pytest.mark.parametrize(('exact', 'refusal'), [(object(), ''), (None, NOT_PREPARED)])
def test_it_says_which_guidance_it_takes(checkpoint, exact, refusal, monkeypatch):
    monkeypatch.setattr(backend, 'Flight', lambda engine: None)  # takes pinned memory
    opened = open_checkpoint(checkpoint, PolicyOptions(trained_prefix=4))
    info = CudaPolicy(opened, SimpleNamespace(exact=exact), CUDA).info
    assert info.guidance_refusals == {'prefix': '', 'identity': '', 'exact': refusal}
    refusals = CudaPolicy(
        open_checkpoint(checkpoint), SimpleNamespace(exact=exact), CUDA
    ).info.guidance_refusals
    assert 'not trained with a frozen prefix' in refusals['prefix']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'language': replace(NANO_PI05.language, kv_heads=2)}, '2 key heads'),
        ({'expert': replace(NANO_PI05.expert, mlp=260)}, 'a width of 260'),
        ({'vision': replace(NANO_PI05.vision, heads=16)}, 'heads of 9'),
    ],
)
def test_sizes_without_kernels_are_named(change, message):
    with pytest.raises(BackendError, match=f'do not cover .*{message}'):
        check_sizes(replace(NANO_PI05, **change), 'bf16')
    check_sizes(NANO_PI05, 'bf16')
    check_sizes(NANO_PI05, 'fp8')
