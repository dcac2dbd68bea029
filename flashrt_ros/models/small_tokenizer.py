"""A tokenizer.json of about a thousand entries, for policies that never saw PaliGemma's vocabulary.

It is built like Gemma's: blanks become U+2581, digits stand alone, byte-pair merges with bytes to fall back
on, and the special tokens have Gemma's ids. Words that robots are told often are one token each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BLANK = '\u2581'
SPECIAL = ('<pad>', '<eos>', '<bos>', '<unk>')
"""Gemma's ids 0 to 3."""

BOS_FIRST = {
    'type': 'TemplateProcessing',
    'single': [{'SpecialToken': {'id': '<bos>', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}],
    'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
    'special_tokens': {'<bos>': {'id': '<bos>', 'ids': [SPECIAL.index('<bos>')], 'tokens': ['<bos>']}},
}
"""Transformers puts bos in front because the file says so; readers of bare text do it themselves."""

WORD_LIST = """
a above action all an and apple arm at away back ball banana basket before behind below between bin black
block blue bottle bottom bowl box bread brown button cabinet can carrot carefully chair clean clear close
cloth coffee container counter cover cube cup cutting cylinder desk dish door down drawer drop empty
faucet fill first flip floor fold for fork from front fruit gently give glass grab grasp gray green grip
gripper hand handle hang hold home in inside insert into it item jar kettle keyboard kitchen knife knob
lamp laptop laundry lay left lemon lid lift light line marker microwave middle mouse move mug napkin near
next object of off on one onion onto open orange oven over pan paper peg pen pencil pick piece pink
pitcher place plate point pot potato pour press pull purple push put rack red release remote return right
ring robot roll rotate rubbish salt scissors screw second shelf shirt side sink slide small sort spatula
sponge spoon square stack stand state stop stove sweep swing switch table take tape task the then third
to tomato top towel toward toy transfer trash tray turn two under unfold up upright use vase wash water
white wipe wire with wooden yellow yogurt
"""

WORDS = tuple(WORD_LIST.split())


def write_small_tokenizer(path: Path) -> None:
    path.write_text(json.dumps(small_tokenizer(), ensure_ascii=False, indent=1) + '\n', encoding='utf-8')


def small_tokenizer() -> dict[str, Any]:
    """Content of a Hugging Face tokenizer.json; the same every time."""
    letters = [chr(code) for code in range(ord('!'), 127)] + [BLANK, '\n']
    entries = [*SPECIAL, *(f'<0x{byte:02X}>' for byte in range(256)), *letters]
    merges = []
    for word in [*WORDS, 'Task:', 'State:', 'Action:']:
        for start in (BLANK, '') if word[0].isupper() else (BLANK,):
            spelled = start + word
            for end in range(2, len(spelled) + 1):
                merges.append((spelled[: end - 1], spelled[end - 1]))
                entries.append(spelled[:end])
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [_special_token(index, content) for index, content in enumerate(SPECIAL)],
        'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': BLANK},
        'pre_tokenizer': {
            'type': 'Sequence',
            'pretokenizers': [
                {
                    'type': 'Split',
                    'pattern': {'String': BLANK},
                    'behavior': 'MergedWithNext',
                    'invert': False,
                },
                {'type': 'Digits', 'individual_digits': True},
            ],
        },
        'post_processor': BOS_FIRST,
        'decoder': None,
        'model': {
            'type': 'BPE',
            'dropout': None,
            'unk_token': '<unk>',
            'continuing_subword_prefix': None,
            'end_of_word_suffix': None,
            'fuse_unk': True,
            'byte_fallback': True,
            'ignore_merges': False,
            'vocab': vocabulary,
            'merges': [list(merge) for merge in dict.fromkeys(merges)],
        },
    }


def _special_token(index: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    return {'id': index, 'content': content, **flags, 'special': True}
