"""The table of subcommands, and what becomes of errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from flashrt_ros import __version__
from flashrt_ros.cli.exit_codes import INTERRUPTED, MEANINGS, WRONG_INPUT
from flashrt_ros.errors import FlashRTError

COMMANDS = {
    'evaluate': 'replay bags into a policy and judge what it does',
    'simulate': 'let a policy do its task on a simulated robot',
    'compare': 'say which of two evaluations, checkpoints or precisions is better',
    'inspect': 'say what a checkpoint expects or what a bag has, and whether they fit',
    'calibrate': 'measure the activation scales of fp8 on bags',
    'tune': 'find the rates and strategy that suit bags and this machine',
    'doctor': 'check middleware, topics, joints, clock and GPU, with the fix for each',
    'status': 'show what the nodes of a robot are doing',
    'record': 'record what running nodes do, to evaluate it',
}
"""Subcommand -> what it does. Its module is `flashrt_ros.cli.NAME`, with '-' as '_'."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if not word.startswith('-')), '')
    parser = _parser(chosen)
    parsed = parser.parse_args(words)
    try:
        return int(_module(parsed.command).run(parsed))
    except FlashRTError as error:
        print(f'flashrt {parsed.command}: {error}', file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(f'flashrt {parsed.command}: interrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Knows every subcommand by name, and the arguments of the chosen one."""
    codes = '\n'.join(f'  {code:>3}  {meaning}' for code, meaning in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog='flashrt',
        description='Vision-language-action policies on bags and robots.',
        epilog=f'exit codes:\n{codes}\n\nflashrt COMMAND --help has the options of each.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'flashrt_ros {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, does in COMMANDS.items():
        description = _module(name).__doc__ if name == chosen else does
        command = commands.add_parser(
            name, help=does, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            _module(name).add_arguments(command)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f'flashrt_ros.cli.{name.replace("-", "_")}')
