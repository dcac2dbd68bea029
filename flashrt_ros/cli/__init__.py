"""The command `flashrt`: `main` has the table of subcommands, each of which is a module of its own here.

A subcommand's module has `add_arguments(parser)` and `run(arguments) -> int`, the exit code, and is imported
only when it is asked for. It raises FlashRTError for what the user gave, which `main` shows as one line.
"""
