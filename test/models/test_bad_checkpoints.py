"""A damaged or foreign checkpoint is refused with the file, the fault and the remedy."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashrt_ros.errors import BackendError, CheckpointError, ConfigError
from flashrt_ros.models.backend import load
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.tensorfile import TensorFile
from flashrt_ros.models.tensors import check_shapes, expected_tensors, spec_from_shapes
from flashrt_ros.policy import PolicyOptions, load_policy
from models.conftest import TINY, Make

GATE = 'paligemma_with_expert.gemma_expert.model.layers.1.mlp.gate_proj.weight'


def rewrite_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = directory / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuse(directory: Path, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(directory, PolicyOptions(**options))
    assert str(directory) in str(caught.value)


class TestDirectory:
    def test_no_such_directory(self, tmp_path: Path) -> None:
        refuse(tmp_path / 'nothing', 'there is no such directory')

    def test_empty_directory(self, tmp_path: Path) -> None:
        refuse(tmp_path, r'config\.json: the file does not exist')

    def test_config_is_broken_json(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'config.json').write_text('{"action_dim": 32,')
        refuse(directory, r'config\.json: the file is not valid JSON')

    def test_config_is_of_something_else(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'config.json').write_text('{"hidden_size": 12}')
        refuse(directory, "neither lerobot's 'type' nor openpi's 'action_horizon'")

    def test_config_lacks_a_key(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        rewrite_json(directory / 'config.json', lambda config: config.pop('chunk_size'))
        refuse(directory, r"config\.json: there is no key 'chunk_size'")

    def test_horizon_is_no_number(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_json(directory / 'config.json', lambda config: config.update(action_horizon='fifty'))
        refuse(directory, "'action_horizon' is 'fifty', which is not of type int")

    def test_horizon_is_zero(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_json(directory / 'config.json', lambda config: config.update(action_horizon=0))
        refuse(directory, "'action_horizon' is 0. It has to be at least 1")

    def test_another_lerobot_policy(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        rewrite_json(directory / 'config.json', lambda config: config.update(type='smolvla'))
        refuse(directory, "the policy is of type 'smolvla'")

    def test_type_contradicts_the_weights(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        rewrite_json(directory / 'config.json', lambda config: config.update(type='pi0'))
        refuse(directory, "'type' says pi0, but the tensors are those of pi05")


class TestWeights:
    def test_file_is_missing(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'model.safetensors').unlink()
        refuse(directory, r'model\.safetensors: the file does not exist')

    @pytest.mark.parametrize('kept', [0, 4, 8, 1000, 100_000, -1])
    def test_file_is_truncated(self, kept: int, checkpoint: Make) -> None:
        path = checkpoint() / 'model.safetensors'
        path.write_bytes(path.read_bytes()[:kept])
        refuse(path.parent, 'the file is truncated or no safetensors file')

    def test_tensor_is_missing(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_weights(directory, lambda tensors: tensors.pop(GATE))
        refuse(directory, f'1 missing tensor: {GATE}')

    def test_tensor_is_extra(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_weights(directory, lambda tensors: tensors.update(adapter=torch.zeros(2)))
        refuse(directory, '1 extra tensor: adapter')

    def test_tensor_has_another_shape(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        name = 'model.' + GATE
        rewrite_weights(directory, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
        refuse(directory, rf'1 misshaped tensor: {GATE} is \[63, 32\] instead of \[64, 32\]')

    def test_everything_is_reported_at_once(self, checkpoint: Make) -> None:
        def change(tensors: dict[str, Tensor]) -> None:
            tensors['time_mlp_out.bias'] = torch.zeros(3)
            for extra in range(20):
                tensors[f'extra.{extra:02d}'] = torch.zeros(1)
            del tensors[GATE]

        directory = checkpoint()
        rewrite_weights(directory, change)
        refuse(
            directory,
            r'1 missing tensor: .*; 20 extra tensors: .* and 8 more; 1 misshaped tensor: time_mlp_out',
        )

    def test_dtype_cannot_be_used(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_weights(directory, lambda tensors: tensors.update({GATE: tensors[GATE].to(torch.int8)}))
        refuse(directory, f'{GATE} is stored as I8')

    @pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
    @pytest.mark.parametrize('precision', ['fp32', 'bf16'])
    def test_weight_is_not_finite(self, bad: float, precision: str, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_weights(directory, lambda tensors: tensors[GATE][3].fill_(bad))
        refuse(directory, f'{GATE} holds NaN or Inf', precision=precision)

    def test_weights_of_another_network(self, checkpoint: Make) -> None:
        directory = checkpoint()
        save_file({'conv1.weight': torch.zeros(3, 3)}, directory / 'model.safetensors')
        refuse(directory, 'not the weights of a pi0 or pi0.5 policy: no SigLIP vision tower, no Gemma')

    def test_paligemma_without_an_action_expert(self, checkpoint: Make) -> None:
        """As pi0-FAST is stored."""

        def drop_expert(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                if 'gemma_expert' in name or not name.startswith('paligemma'):
                    del tensors[name]

        directory = checkpoint()
        rewrite_weights(directory, drop_expert)
        refuse(directory, 'no action expert, no action projection')

    def test_no_embedding_in_either_form(self, checkpoint: Make) -> None:
        directory = checkpoint()
        rewrite_weights(
            directory, lambda tensors: tensors.pop('paligemma_with_expert.paligemma.lm_head.weight')
        )
        refuse(directory, r'1 missing tensor: .*embed_tokens\.weight')

    def test_towers_of_different_depth(self, checkpoint: Make) -> None:
        def drop_layer(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                if 'gemma_expert.model.layers.1.' in name:
                    del tensors[name]

        directory = checkpoint()
        rewrite_weights(directory, drop_layer)
        refuse(directory, 'the language tower has 2 layers .* the action expert 1')


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_header_bytes_at_random_never_crash(
    data: st.DataObject, originals: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """Damage to length and header gives a CheckpointError, or a file that reads as tensors."""
    content = bytearray((originals['openpi', 'pi05'] / 'model.safetensors').read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(tensor, Tensor) for tensor in TensorFile(path).values())


@settings(max_examples=300, deadline=None)
@given(data=st.data(), family=st.sampled_from(sorted(TINY)))
def test_any_tensor_of_any_other_shape_is_reported(data: st.DataObject, family: str) -> None:
    shapes = expected_tensors(TINY[family])
    sizes_of_their_own = ('embed_tokens.weight', 'position_embedding.weight')  # vocabulary, image
    name = data.draw(st.sampled_from(sorted(n for n in shapes if not n.endswith(sizes_of_their_own))))
    other = tuple(data.draw(st.lists(st.integers(0, 5000), max_size=4)))
    assume(other != shapes[name])
    with pytest.raises(CheckpointError):
        check_shapes(
            shapes | {name: other},
            expected_tensors(spec_from_shapes(shapes | {name: other}, 'file', 12)),
            'file',
        )


class TestStatistics:
    def test_openpi_without_assets(self, checkpoint: Make) -> None:
        directory = checkpoint()
        shutil.rmtree(directory / 'assets')
        refuse(
            directory,
            r'no norm stats: searched .*assets/<asset_id>/norm_stats\.json.* Copy the assets folder',
        )

    def test_openpi_with_several_assets(self, checkpoint: Make) -> None:
        directory = checkpoint()
        shutil.copytree(
            directory / 'assets' / 'robot', directory / 'assets' / 'physical-intelligence' / 'libero'
        )
        refuse(directory, "several norm stats: physical-intelligence/libero, robot.*option 'asset_id'")
        refuse(directory, "no norm stats of asset 'droid'", asset_id='droid')
        open_checkpoint(directory, PolicyOptions(asset_id='physical-intelligence/libero'))

    def test_openpi_statistics_lack_quantiles(self, checkpoint: Make) -> None:
        directory = checkpoint()
        path = directory / 'assets' / 'robot' / 'norm_stats.json'
        rewrite_json(path, lambda content: content['norm_stats']['state'].pop('q99'))
        refuse(directory, r"norm_stats\.json: there is no key 'q99'")

    def test_openpi_statistics_are_not_finite(self, checkpoint: Make) -> None:
        directory = checkpoint(family='pi0')
        path = directory / 'assets' / 'robot' / 'norm_stats.json'
        rewrite_json(path, lambda content: content['norm_stats']['actions'].update(std=[float('nan')] * 6))
        refuse(directory, "'std' is no list of finite numbers")

    def test_openpi_statistics_differ_in_length(self, checkpoint: Make) -> None:
        directory = checkpoint(family='pi0')
        path = directory / 'assets' / 'robot' / 'norm_stats.json'
        rewrite_json(path, lambda content: content['norm_stats']['state'].update(std=[1.0] * 5))
        refuse(directory, "'mean' has 6 and 'std' 5 values")

    def test_statistics_wider_than_the_network(self, checkpoint: Make) -> None:
        directory = checkpoint(family='pi0')
        path = directory / 'assets' / 'robot' / 'norm_stats.json'
        wide = {key: [1.0] * 40 for key in ('mean', 'std', 'q01', 'q99')}
        rewrite_json(path, lambda content: content['norm_stats'].update(state=wide))
        refuse(directory, 'the statistics have 40 values, for a network 32 wide')

    def test_robot_wider_than_the_statistics(self, checkpoint: Make) -> None:
        refuse(checkpoint(), 'state_dim is 7 wide, but the statistics have 6 values', state_dim=7)
        refuse(checkpoint('lerobot'), 'action_dim is 9 wide, but the statistics have 6', action_dim=9)

    def test_lerobot_without_processors(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        (directory / 'policy_preprocessor.json').unlink()
        refuse(
            directory,
            r'no norm stats: policy_preprocessor\.json does not exist.*migrate_policy_normalization',
        )

    def test_lerobot_without_a_state_file(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        (directory / 'policy_postprocessor_step_0_unnormalizer_processor.safetensors').unlink()
        refuse(directory, r'unnormalizer_processor\.safetensors: there are no norm stats')

    def test_lerobot_statistics_lack_quantiles(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        path = directory / 'policy_preprocessor_step_3_normalizer_processor.safetensors'
        tensors = load_file(path)
        del tensors['observation.state.q01']
        save_file(tensors, path)
        refuse(directory, r"there are no norm stats 'observation\.state\.q01' \(there are: action\.max")

    def test_lerobot_with_a_step_of_its_own(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        rewrite_json(
            directory / 'policy_preprocessor.json',
            lambda content: content['steps'].append({'registry_name': 'crop_images', 'config': {}}),
        )
        refuse(directory, 'the processing steps crop_images are not known')

    def test_lerobot_with_a_step_twice_or_without_its_prompt(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        path = directory / 'policy_preprocessor.json'
        original = json.loads(path.read_text())
        path.write_text(json.dumps({'steps': original['steps'] + original['steps'][:1]}))
        refuse(directory, 'a processing step stands there twice')
        path.write_text(json.dumps({'steps': [s for s in original['steps'] if 'prepare' not in str(s)]}))
        refuse(directory, "there is no key 'pi05_prepare_state_tokenizer_processor_step'")

    def test_lerobot_with_an_unknown_normalisation(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')

        def change(content: dict[str, Any]) -> None:
            content['steps'][0]['config']['norm_map']['ACTION'] = 'ROBUST'

        rewrite_json(directory / 'policy_postprocessor.json', change)
        refuse(directory, "the normalisation mode 'ROBUST' is not known")


class TestTokenizer:
    def test_there_is_none(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'tokenizer.json').unlink()
        refuse(
            directory,
            r'there is no tokenizer: looked for tokenizer\.model, paligemma_tokenizer\.model, tokenizer',
        )

    def test_it_is_no_tokenizer(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'tokenizer.json').write_text('{"version": "1.0"}')
        refuse(directory, r'tokenizer\.json: the tokenizer cannot be read')

    def test_the_sentencepiece_file_is_damaged(self, checkpoint: Make) -> None:
        directory = checkpoint()
        (directory / 'tokenizer.model').write_bytes(b'\x0a\x0e\x0a\x05')
        refuse(directory, r'tokenizer\.model: the tokenizer cannot be read')

    def test_it_has_no_bos(self, checkpoint: Make) -> None:
        directory = checkpoint()
        text = (directory / 'tokenizer.json').read_text()
        (directory / 'tokenizer.json').write_text(text.replace('<bos>', '<start>'))
        refuse(directory, r'it has no <bos>')

    def test_it_is_larger_than_the_embedding(self, checkpoint: Make) -> None:
        directory = checkpoint()
        name = 'paligemma_with_expert.paligemma.lm_head.weight'
        rewrite_weights(directory, lambda tensors: tensors.update({name: tensors[name][:1000].clone()}))
        refuse(directory, r'the tokenizer has 1050 entries, but the checkpoint embeds 1000 tokens')


class TestOptions:
    def test_precision_is_not_for_the_cpu(self, checkpoint: Make) -> None:
        with pytest.raises(BackendError, match="the CPU cannot run precision 'fp8'"):
            load_policy(checkpoint(), PolicyOptions(precision='fp8'))

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (PolicyOptions(prompt_form='json'), "'json' is no prompt_form. Choose one of state, plain"),
            (PolicyOptions(resize='area'), "'area' is no resize. Choose one of pil, torch"),
            (PolicyOptions(steps=0), '0 flow steps are asked for'),
        ],
    )
    def test_value_is_not_offered(self, options: PolicyOptions, message: str, checkpoint: Make) -> None:
        with pytest.raises(ConfigError, match=message):
            load_policy(checkpoint(), options)

    def test_pi0_cannot_read_its_state(self, checkpoint: Make) -> None:
        with pytest.raises(ConfigError, match='pi0 takes the state as a token'):
            load_policy(checkpoint(family='pi0'), PolicyOptions(prompt_form='state'))
