"""Runs the command as `python -m hf_it3.cli`, which is what `torchrun` and `accelerate launch` start."""

import sys

from . import main


sys.exit(main())
