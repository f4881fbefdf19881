# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The options that ``tensorboard_logging.py`` has in both backends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from studies.options import add_run_options


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options of the example.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What ``--help`` says first.
    :param argv: The command line; None is that of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--num-steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=100, help="steps from one look to the next")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=32)
    parser.add_argument("--noise-scale", type=float, default=0.15)
    parser.add_argument("--gamma", type=float, default=0.5, help="weight of R1")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    add_run_options(parser, backend, "tensorboard")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.every, args.hidden_dim = 20, 10, 16
    for option in ("num_steps", "every", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    return args
