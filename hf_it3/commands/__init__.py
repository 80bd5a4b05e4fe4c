"""Subcommands of `hf-it3`, each a module with `add_arguments(parser)` and `run(arguments)`."""
