"""Between robot and network: normalisation, prompts, images and what an observation may look like."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from flashrt_ros.errors import CheckpointError, ObservationError
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.models.normalize import MeanStd, Range
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.prompt import prompt_pieces, state_bins
from flashrt_ros.models.small_tokenizer import WORDS
from flashrt_ros.models.tokenizer import load_tokenizer
from flashrt_ros.policy import Observation, PolicyOptions
from models.conftest import Make

Columns = dict[str, np.ndarray]


def read(directory: Path, **options: Any) -> Processing:
    return open_checkpoint(directory, PolicyOptions(**options)).processing


def openpi_statistics(directory: Path, group: str) -> Columns:
    content = json.loads((directory / 'assets' / 'robot' / 'norm_stats.json').read_text())
    return {key: np.array(values) for key, values in content['norm_stats'][group].items()}


class TestNormalisation:
    def test_openpi_pi0_uses_mean_and_deviation(self, checkpoint: Make, observation: Observation) -> None:
        directory = checkpoint(family='pi0')
        stats, processing = openpi_statistics(directory, 'state'), read(directory)
        expected = (observation.state - stats['mean']) / (stats['std'] + 1e-6)
        np.testing.assert_allclose(processing.normalized_state(observation.state), expected, rtol=1e-12)
        stats = openpi_statistics(directory, 'actions')
        network = np.random.default_rng(1).normal(size=(12, 32)).astype(np.float32)
        expected = network[:, :6] * (stats['std'] + 1e-6) + stats['mean']
        np.testing.assert_allclose(processing.restore(network, observation.state), expected, rtol=1e-6)

    def test_openpi_pi05_uses_quantiles(self, checkpoint: Make, observation: Observation) -> None:
        directory = checkpoint()
        stats, processing = openpi_statistics(directory, 'state'), read(directory)
        width = stats['q99'] - stats['q01'] + 1e-6
        expected = (observation.state - stats['q01']) / width * 2 - 1
        np.testing.assert_allclose(processing.normalized_state(observation.state), expected, rtol=1e-12)
        stats = openpi_statistics(directory, 'actions')
        network = np.random.default_rng(1).normal(size=(12, 32)).astype(np.float32)
        expected = (network[:, :6] + 1) / 2 * (stats['q99'] - stats['q01'] + 1e-6) + stats['q01']
        np.testing.assert_allclose(processing.restore(network, observation.state), expected, rtol=1e-6)

    @given(x=hnp.arrays(np.float64, 4, elements=st.floats(-1e3, 1e3)))
    def test_restoring_undoes_normalising(self, x: np.ndarray) -> None:
        low, high = np.array([-1.0, 0.0, 5.0, 2.0]), np.array([1.0, 0.5, 5.0, 2.5])
        for normalizer in (
            MeanStd.openpi(low, high + 2),
            Range.openpi(low, high),
            Range.lerobot(low, high, 1e-8),
            MeanStd.lerobot(low, high + 2, 1e-8),
        ):
            back = normalizer.restore(normalizer.normalize(x))
            np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-3)

    def test_statistics_longer_than_the_robot_are_cut(
        self, checkpoint: Make, observation: Observation
    ) -> None:
        directory = checkpoint()
        whole = read(directory)
        narrow = read(directory, state_dim=4, action_dim=3)
        state = observation.state[:4]
        np.testing.assert_array_equal(
            narrow.normalized_state(state), whole.normalized_state(observation.state)[:4]
        )
        network = np.ones((12, 32), np.float32)
        assert narrow.restore(network, state).shape == (12, 3)
        np.testing.assert_array_equal(
            narrow.restore(network, state), whole.restore(network, observation.state)[:, :3]
        )

    def test_padded_statistics_do_not_tell_the_robot(self, checkpoint: Make) -> None:
        directory = checkpoint(family='pi0')
        path = directory / 'assets' / 'robot' / 'norm_stats.json'
        padded = {key: [1.0] * 32 for key in ('mean', 'std')}
        path.write_text(json.dumps({'norm_stats': {'state': padded, 'actions': padded}}))
        processing = read(directory)
        assert (processing.state_dim, processing.action_dim) == (0, 0)
        assert processing.restore(np.zeros((12, 32), np.float32), np.zeros(7)).shape == (12, 32)
        assert read(directory, action_dim=7).action_dim == 7

    def test_delta_actions_are_added_to_the_raw_state(
        self, checkpoint: Make, observation: Observation
    ) -> None:
        directory = checkpoint()
        delta = (True, True, False, True)
        network = np.random.default_rng(1).normal(size=(12, 32)).astype(np.float32)
        absolute = read(directory).restore(network, observation.state)
        relative = read(directory, delta_actions=delta).restore(network, observation.state)
        added = np.where([*delta, False, False], observation.state, 0)
        np.testing.assert_allclose(relative, absolute + added, rtol=1e-6)

    def test_lerobot_feature_that_is_not_normalised(self, checkpoint: Make, observation: Observation) -> None:
        directory = checkpoint('lerobot')
        path = directory / 'policy_preprocessor.json'
        path.write_text(path.read_text().replace('"STATE": "QUANTILES"', '"STATE": "IDENTITY"'))
        normalized = read(directory).normalized_state(observation.state)
        np.testing.assert_array_equal(normalized, observation.state)


class TestPrompt:
    @pytest.mark.parametrize(
        ('form', 'expected'),
        [
            ('state', ('Task: pick up  the fork, State: -1 0 128 255;\nAction: ',)),
            ('plain', ('pick up  the fork', '\n')),
            ('lerobot_plain', (' pick_up\n the fork \n',)),
        ],
    )
    def test_forms(self, form: str, expected: tuple[str, ...]) -> None:
        state = np.array([-1.1, -1.0, 0.0, 7.0])
        assert prompt_pieces(form, ' pick_up\n the fork ', state) == expected

    @given(x=hnp.arrays(np.float32, 5, elements=st.floats(-3, 3, width=32)))
    def test_state_bins_are_those_of_openpi(self, x: np.ndarray) -> None:
        np.testing.assert_array_equal(state_bins(x), np.digitize(x, bins=np.linspace(-1, 1, 257)[:-1]) - 1)

    def test_bins_at_their_edges(self) -> None:
        edges = np.linspace(-1, 1, 257)
        np.testing.assert_array_equal(state_bins(edges), [*range(256), 255])
        np.testing.assert_array_equal(state_bins(np.nextafter(edges[1:256], -2)), range(255))

    def test_only_what_the_options_say_goes_into_the_prompt(self, checkpoint: Make) -> None:
        state = np.linspace(-1, 1, 6)
        forms = {
            ('openpi', 'pi0', None): 'plain',
            ('openpi', 'pi05', None): 'state',
            ('openpi', 'pi05', 'plain'): 'plain',
            ('lerobot', 'pi0', None): 'lerobot_plain',
            ('lerobot', 'pi05', None): 'state',
        }
        for (layout, family, chosen), form in forms.items():
            directory = checkpoint(layout, family)
            processing = read(directory, prompt_form=chosen)
            tokenizer = processing.tokenizer
            pieces = prompt_pieces(form, 'lift_it', state)
            expected = [2, *(token for piece in pieces for token in tokenizer.encode(piece))]
            assert processing.tokens('lift_it', state) == expected
            shutil.rmtree(directory)

    def test_prompt_too_long_says_how_long(self, checkpoint: Make, observation: Observation) -> None:
        processing = read(checkpoint(family='pi0'))
        message = 'the prompt is 50 tokens long, and this checkpoint takes at most 48'
        with pytest.raises(ObservationError, match=message):
            processing.prepare(replace(observation, prompt='cup ' * 46))
        assert processing.prepare(replace(observation, prompt='cup ' * 44)).tokens.shape == (1, 48)


class TestTokenizer:
    def test_every_word_of_the_small_tokenizer_is_one_token(self, checkpoint: Make) -> None:
        tokenizer = load_tokenizer(None, checkpoint(), 1200)
        assert [len(tokenizer.encode(f' {word}')) for word in WORDS] == [1] * len(WORDS)

    def test_any_text_is_covered_by_bytes(self, checkpoint: Make) -> None:
        tokenizer = load_tokenizer(None, checkpoint(), 1200)
        assert tokenizer.encode('é') == [4 + 0xC3, 4 + 0xA9]
        assert 3 not in tokenizer.encode('Stelle die Tasse ans Fenster – 你好 🤖')

    def test_sentencepiece_model_is_read(self, checkpoint: Make, tmp_path: Path) -> None:
        model = train_sentencepiece(tmp_path / 'paligemma_tokenizer')
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        processing = read(checkpoint(), tokenizer=model)
        text = 'Task: pick up the cup, State: 1 2;\nAction: '
        assert processing.tokenizer.encode(text) == processor.encode(text)
        tokens = processing.tokens('pick up the cup', np.zeros(6))
        assert tokens[0] == processor.bos_id() == 2
        assert processor.decode(tokens) == 'Task: pick up the cup, State: 128 128 128 128 128 128;\nAction: '

    def test_directory_may_be_named(self, checkpoint: Make, tmp_path: Path) -> None:
        directory = checkpoint()
        (tmp_path / 'elsewhere').mkdir()
        shutil.move(directory / 'tokenizer.json', tmp_path / 'elsewhere')
        with pytest.raises(CheckpointError, match='there is no tokenizer'):
            read(directory)
        assert read(directory, tokenizer=tmp_path / 'elsewhere').tokenizer.size == 1050

    def test_file_that_pads_and_truncates_does_neither(self, checkpoint: Make) -> None:
        directory = checkpoint()
        path = directory / 'tokenizer.json'
        content = json.loads(path.read_text())
        content['truncation'] = {
            'max_length': 4,
            'strategy': 'LongestFirst',
            'stride': 0,
            'direction': 'Right',
        }
        path.write_text(json.dumps(content))
        assert len(load_tokenizer(None, directory, 1200).encode(' cup' * 30)) == 30


def train_sentencepiece(prefix: Path) -> Path:
    """A sentencepiece model with PaliGemma's settings: no dummy prefix, blanks kept, digits apart, bytes."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['Task: pick up the cup, State: 0 1 2 3;', 'Action: put the cup down'] * 20),
        model_prefix=str(prefix),
        model_type='bpe',
        vocab_size=330,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name='identity',
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return prefix.with_suffix('.model')


class TestImages:
    @pytest.mark.parametrize('size', [(480, 640), (640, 480), (224, 224), (100, 224), (37, 53), (1080, 1920)])
    def test_pil_convention_is_pil(self, size: tuple[int, int]) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        ratio = max(size) / 224
        inner = int(size[1] / ratio), int(size[0] / ratio)
        small = Image.fromarray(pixels).resize(inner, Image.Resampling.BILINEAR)
        left, top = (224 - inner[0]) // 2, (224 - inner[1]) // 2
        border = (left, top, 224 - inner[0] - left, 224 - inner[1] - top)
        expected = np.asarray(ImageOps.expand(small, border))
        actual = resize_with_pad(pixels, 224, 'pil')
        assert actual.shape == (3, 224, 224)
        assert actual.dtype == torch.float32
        np.testing.assert_array_equal(((actual.permute(1, 2, 0).double() + 1) * 127.5).round(), expected)

    @pytest.mark.parametrize('convention', ['pil', 'torch'])
    def test_image_without_a_row_left_is_refused(self, convention: str) -> None:
        with pytest.raises(ObservationError, match='an image of 1 x 500 is too narrow for a square of 224'):
            resize_with_pad(np.zeros((1, 500, 3), np.uint8), 224, convention)

    def test_conventions_differ_where_an_image_shrinks(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        difference = resize_with_pad(pixels, 224, 'pil') - resize_with_pad(pixels, 224, 'torch')
        assert difference.abs().max() > 0.3

    @pytest.mark.parametrize('convention', ['pil', 'torch'])
    def test_constant_image_stays_constant_and_the_border_is_black(self, convention: str) -> None:
        square = resize_with_pad(np.full((480, 640, 3), 255, np.uint8), 224, convention)
        torch.testing.assert_close(square[:, 28:196], torch.ones(3, 168, 224))
        assert square[:, :28].max() == square[:, 196:].max() == -1

    @pytest.mark.parametrize('convention', ['pil', 'torch'])
    @pytest.mark.parametrize('size', [(48, 64), (224, 224)])
    @pytest.mark.filterwarnings('error')
    def test_turned_and_read_only_arrays_are_taken(self, size: tuple[int, int], convention: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        bgr.flags.writeable = False
        expected = resize_with_pad(pixels, 224, convention)
        assert torch.equal(resize_with_pad(bgr[..., ::-1], 224, convention), expected)


class TestObservation:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (
                {'images': {'head': np.zeros((4, 4, 3), np.uint8)}},
                "there is no view 'head' in this checkpoint. Use",
            ),
            ({'images': {}}, 'there is no image at all'),
            (
                {'images': {'base_0_rgb': np.zeros((4, 4, 3), np.float32)}},
                "'base_0_rgb': the pixels are float32",
            ),
            ({'images': {'base_0_rgb': np.zeros((3, 4, 4), np.uint8)}}, r'the shape is \[3, 4, 4\]'),
            ({'images': {'base_0_rgb': np.zeros((0, 4, 3), np.uint8)}}, r'the shape is \[0, 4, 3\]'),
            ({'images': {'base_0_rgb': [[0]]}}, 'the pixels are list'),
            ({'state': np.zeros(5, np.float32)}, 'the state has 5 values, and this checkpoint takes 6'),
            ({'state': np.zeros((1, 6), np.float32)}, r'the state is float32 \[1, 6\]'),
            ({'state': np.zeros(6, np.int64)}, r'the state is int64 \[6\]'),
            ({'state': [0.0] * 6}, 'the state is list'),
            ({'state': np.array([0, np.nan, 0, np.inf, 0, 0])}, 'the state is not finite at index 1, 3'),
            ({'prompt': ' \n'}, 'the prompt is empty'),
        ],
    )
    @pytest.mark.parametrize('layout', ['openpi', 'lerobot'])
    def test_what_cannot_be_taken(
        self, layout: str, change: dict[str, Any], message: str, checkpoint: Make, observation: Observation
    ) -> None:
        processing = read(checkpoint(layout))
        with pytest.raises(ObservationError, match=message):
            processing.prepare(replace(observation, **change))

    def test_absent_views_are_left_out_and_order_is_the_checkpoints(
        self, checkpoint: Make, observation: Observation
    ) -> None:
        processing = read(checkpoint())
        turned = replace(observation, images=dict(reversed(observation.images.items())))
        both = processing.prepare(observation).images
        assert torch.equal(both, processing.prepare(turned).images)
        one = replace(observation, images={'left_wrist_0_rgb': observation.images['left_wrist_0_rgb']})
        assert torch.equal(processing.prepare(one).images, both[1:])

    def test_frames_are_as_good_as_arrays(self, checkpoint: Make, observation: Observation) -> None:
        processing = read(checkpoint())
        frames = replace(observation, images=processing.frames(observation.images))
        assert list(frames.images) == [view for view in processing.views if view in observation.images]
        expected = processing.prepare(observation).images
        assert torch.equal(processing.prepare(frames).images, expected)
        assert torch.equal(processing.prepare(processing.shrunk(frames)).images, expected)

    def test_empty_cameras_of_lerobot_are_no_views(self, checkpoint: Make) -> None:
        directory = checkpoint('lerobot')
        path = directory / 'config.json'
        config = json.loads(path.read_text())
        config['empty_cameras'] = 1
        config['input_features']['observation.images.empty_camera_0'] = {
            'type': 'VISUAL',
            'shape': [3, 224, 224],
        }
        path.write_text(json.dumps(config))
        assert read(directory).views == ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')

    def test_state_too_short_for_relative_actions(self, checkpoint: Make, observation: Observation) -> None:
        processing = read(checkpoint(), delta_actions=(True,) * 6)
        short = replace(processing, state_dim=0)
        with pytest.raises(ObservationError, match='the state has 4 values, too few for the actions'):
            short.prepare(replace(observation, state=observation.state[:4]))
