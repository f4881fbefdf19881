# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a running SVI, from which it continues bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_spread import _checkpoint_state as state
from numpyro_spread.guard import loss_of
from spread_core.checkpoint_checks import check_classes, loss_state, prepare_loss
from spread_core.checkpoint_file import Checkpoint, CheckpointReader, write
from spread_core.messages import checkpoints


def save_checkpoint(
    directory: str | os.PathLike[str],
    svi: SVI,
    svi_state: SVIState,
    step: int,
    *,
    keep: int | None = 3,
    metadata: Any = None,
) -> Path:
    """
    Write everything that the next step of an SVI reads to one file, completely or not at all.

    This is the whole state: params, optimisers (both players', with schedules and averages),
    mutable state such as the running averages of batch normalisation, and the random key, of either
    style. The file is in the safetensors format: arrays and JSON; reading it runs no code.

        >>> import jax, jax.numpy as jnp, numpyro, optax, tempfile, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     loc = numpyro.param("loc", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(0.1), Trace_ELBO())
        >>> data, directory = jnp.ones(8), tempfile.mkdtemp()
        >>> svi_state, loss = svi.update(svi.init(jax.random.key(0), data), data)
        >>> save_checkpoint(directory, svi, svi_state, step=1).name
        '00000001-step-1.safetensors'

    :param directory: made if it is not there; one for each run.
    :param svi: the SVI.
    :param svi_state: its state, as ``svi.init``, ``svi.update`` and ``svi.run(...).state`` give it.
    :param step: number of steps done.
    :param keep: how many checkpoints to keep, this one included; None keeps all.
    :param metadata: what else the program has to know, of numbers, strings, lists, tuples, dicts
        and arrays.
    :return: path of the file.
    :raises ValueError: if a number is out of its range, or an array cannot be read any more.
    :raises RuntimeError: if another process saves in the directory at the same moment.
    :raises TypeError: if something cannot be written as arrays and JSON. In either case nothing is
        written, and earlier checkpoints stay.
    """
    _check(svi, svi_state)
    content = {
        "classes": state.classes(svi),
        "nodes": state.nodes(svi_state),
        "leaves": state.leaves(svi_state),
        "bounds": state.bounds(svi),
        # Last: with the leaves computed, compiled steps have reported to the loss.
        "loss": loss_state(loss_of(svi)),
    }
    return write(state.codec(), directory, step, content, metadata, state.versions(), keep)


def load_checkpoint(
    path: str | os.PathLike[str], svi: SVI, svi_state: SVIState
) -> tuple[SVIState, Checkpoint]:
    """
    Continue from a checkpoint: the following steps are, bit for bit, those of the saved run.

    The program builds the SVI and its first state as it did for the saved run; the arrays of that
    state are then replaced by those of the file.

        >>> import jax, jax.numpy as jnp, numpyro, optax, tempfile, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     loc = numpyro.param("loc", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(0.1), Trace_ELBO())
        >>> data, directory = jnp.ones(8), tempfile.mkdtemp()
        >>> first = svi.init(jax.random.key(0), data)
        >>> svi_state, loss = svi.update(first, data)
        >>> path = save_checkpoint(directory, svi, svi_state, step=1)
        >>> svi_state, checkpoint = load_checkpoint(directory, svi, first)
        >>> checkpoint.step, f"{svi.get_params(svi_state)['loc']:.2f}"
        (1, '0.10')

    :param path: a directory, whose newest checkpoint is taken, or a file.
    :param svi: the SVI.
    :param svi_state: a state of the same structure, as ``svi.init`` returns. Arrays go to the
        devices on which its arrays are; the random key of ``svi.init`` does not matter.
    :return: the state, and step, metadata, path and library versions of the checkpoint.
    :raises FileNotFoundError: if there is no checkpoint.
    :raises CheckpointError: if the file is truncated, damaged, foreign or of another run, naming
        the first leaf that differs. No file is changed; the message names an earlier checkpoint if
        there is one, which is not taken silently.
    """
    _check(svi, svi_state)
    reader = CheckpointReader(state.codec(), path)
    check_classes(reader, state.classes(svi))
    commit_loss = prepare_loss(reader, loss_of(svi))
    restored = state.restored(reader, svi_state)
    state.check_bounds(reader, svi)
    reader.warn_of_versions(state.versions())  # an error, for those who want it so
    commit_loss()
    return restored, reader.checkpoint


def _check(svi: Any, svi_state: Any) -> None:
    if not isinstance(svi, SVI):
        raise TypeError(checkpoints.no_svi(svi, "numpyro.infer.SVI"))
    if not isinstance(svi_state, SVIState) or not jax.tree.leaves(svi_state):
        raise TypeError(
            "`svi_state` must be an SVIState, as svi.init and svi.update return, got "
            f"{type(svi_state).__name__}"
        )
