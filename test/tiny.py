"""The smallest pi0.5 that every backend takes, fp8 included: for tests whose subject is not the network."""

from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

TINY = PolicySpec(
    'pi05',
    VisionSpec(layers=1, width=144, heads=2, mlp=64),
    GemmaSpec(layers=1, width=64, mlp=64, head_dim=16),
    GemmaSpec(layers=1, width=32, mlp=64, head_dim=16),
    vocab=2048,
    horizon=20,
    steps=2,
)
