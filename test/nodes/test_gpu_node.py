"""The policy node with its policy on the GPU, JPEGs decoded there, and what the doctor says of it."""

import subprocess
import sys

import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk, InferenceStats

from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import Sensors, wait_until

pytestmark = [
    pytest.mark.ros,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]

ON_GPU = {'policy.device': 'cuda', 'policy.precision': 'bf16', 'ingest': {'decode': 'gpu'}}


def test_a_node_sees_raw_and_compressed_cameras_with_the_gpu(graph, robot_yaml):
    sensors = Sensors(graph)
    chunks, stats = graph.watch(ActionChunk, 'action_chunk'), graph.watch(InferenceStats, 'inference_stats')
    diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
    node = graph.start(PolicyNode, robot_yaml(ON_GPU))
    assert graph.change(node, 'configure', 'activate')
    wait_until(lambda: len(chunks) > 20, what='20 chunks')
    one = graph.messages_after(stats, lambda message: not message.blocked, what='statistics')
    assert min(one.vision, one.prefill, one.denoise, one.preprocess) > 0
    assert node._worker.counts.inferences_failed == 0

    def told(array):
        values = {pair.key: pair.value for status in array.status for pair in status.values}
        return 'nvJPEG' in values.get('JPEGs', '')

    graph.messages_after(diagnostics, told, what='what decodes JPEGs')

    # A picture that ends too soon is refused, and nothing stays broken.
    def cut(message):
        message.data = message.data[: len(message.data) // 2]

    sensors.change['left_wrist_0_rgb'] = cut
    graph.messages_after(stats, lambda message: 'left_wrist_0_rgb' in message.blocked, what='a refusal')
    sensors.change.clear()
    graph.messages_after(chunks, lambda chunk: True, what='a chunk')
    assert node._worker.counts.inferences_failed == 0


def test_the_doctor_finds_gpu_kernels_and_weights(graph, robot_yaml):
    sensors = Sensors(graph)
    config = robot_yaml(ON_GPU)
    node = graph.start(PolicyNode, config)
    assert graph.change(node, 'configure')  # compiles and packs
    command = [sys.executable, '-m', 'flashrt_ros.cli.doctor', '--listen', '1.5', '--config', str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    lines = {line[5:31].strip(): line for line in done.stdout.splitlines()}
    for subject in ('GPU', 'kernels', 'packed weights', 'checkpoint'):
        assert lines[subject].startswith('ok'), done.stdout
    assert 'nvJPEG' in done.stdout
    assert sensors.stamps['state']
