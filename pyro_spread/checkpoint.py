# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a running SVI, from which it continues bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
from pyro.infer import SVI
from torch import nn

from pyro_spread import _checkpoint_state as state
from pyro_spread import _optimiser_state as optimisers
from pyro_spread._called_modules import watch
from pyro_spread._reachable_modules import (
    find_modules,
    held_beside_params,
    loss_of,
    strangers,
)
from pyro_spread._unsaved_state import attributes
from spread_core.checkpoint_checks import check_classes, loss_state, prepare_loss
from spread_core.checkpoint_file import Checkpoint, CheckpointReader, write
from spread_core.messages import checkpoints


def save_checkpoint(
    directory: str | os.PathLike[str],
    svi: SVI,
    step: int,
    *,
    keep: int | None = 3,
    metadata: Any = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> Path:
    """
    Write everything that the next step of an SVI reads to one file, completely or not at all.

    These are the params of the store, their optimisers (both players', with schedules and
    averages), buffers of nets such as the running averages of batch normalisation, counters of the
    loss, and the random state of torch (CUDA too), NumPy and Python. The file is in the safetensors
    format: arrays and JSON; reading it runs no code.

        >>> import pyro, tempfile, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> pyro.clear_param_store()
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> data, directory = torch.ones(8), tempfile.mkdtemp()
        >>> losses = [svi.step(data) for _ in range(3)]
        >>> save_checkpoint(directory, svi, step=3).name
        '00000001-step-3.safetensors'

    :param directory: made if it is not there; one for each run.
    :param svi: the SVI, after at least one step.
    :param step: number of steps done.
    :param keep: how many checkpoints to keep, this one included; None keeps all.
    :param metadata: what else the program has to know, of numbers, strings, lists, tuples, dicts,
        NumPy's arrays and tensors.
    :param modules: nets by name that model, guide and loss do not lead to, as those in an object
        of a library do not.
    :return: path of the file.
    :raises ValueError: if a step calls a net that is not found, or its params are in the store, if
        an optimiser has state outside its state dict, if there are no params at all, or a number is
        out of its range.
    :raises RuntimeError: if another process saves in the directory at the same moment.
    :raises TypeError: if something cannot be written as arrays and JSON. In either case nothing is
        written, and earlier checkpoints stay.
    """
    _check_svi(svi)
    store = pyro.get_param_store()
    if not store:
        raise ValueError(
            "the param store is empty, so there is nothing to save: take one step of the SVI first"
        )
    state.check_optimiser(svi)
    found = find_modules(svi, modules)
    if hidden := strangers(found):
        raise ValueError(checkpoints.hidden_modules(hidden))
    state.check_called(svi, found)
    watch(svi)
    content = {
        "classes": state.classes(svi),
        "params": {name: state.param_state(name) for name in list(store.keys())},
        "optimizer": optimisers.state_of(svi.optim),
        "optimizer_attributes": attributes(svi.optim),
        "modules": {k: state.held_state(held) for k, held in held_beside_params(found).items()},
        "further_modules": state.further_names(svi, modules, held_beside_params(found)),
        "loss": loss_state(loss_of(svi)),
        "random": state.random_state(),
    }
    return write(state.codec(), directory, step, content, metadata, state.versions(), keep)


def load_checkpoint(
    path: str | os.PathLike[str],
    svi: SVI,
    *args: Any,
    modules: Mapping[str, nn.Module] | None = None,
    **kwargs: Any,
) -> Checkpoint:
    """
    Continue from a checkpoint: the following steps are, bit for bit, those of the saved run.

    The program builds model, guide, nets, optimisers and loss as it did for the saved run; their
    values are then those of the file. In a process that has not taken a step yet, params, lazy
    layers and autoguides are declared first, by a step that changes nothing.

        >>> import pyro, tempfile, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def start():
        ...     pyro.clear_param_store()
        ...     adam = pyro.optim.Adam({"lr": 0.1})
        ...     return SVI(model, lambda x: None, adam, Trace_ELBO())
        >>> data, directory, svi = torch.ones(8), tempfile.mkdtemp(), start()
        >>> loss = svi.step(data)
        >>> path, loc = save_checkpoint(directory, svi, step=1), pyro.param("loc").item()
        >>> svi = start()
        >>> load_checkpoint(directory, svi, data).step, pyro.param("loc").item() == loc
        (1, True)

    :param path: a directory, whose newest checkpoint is taken, or a file.
    :param svi: the SVI.
    :param args: arguments of a step. They are needed before the first step of a process only.
    :param modules: as for :func:`save_checkpoint`.
    :param kwargs: keyword arguments of a step.
    :return: step, metadata, path and library versions of the checkpoint.
    :raises FileNotFoundError: if there is no checkpoint.
    :raises CheckpointError: if the file is truncated, damaged, foreign, of another run, or holds a
        state from which the next step would fail. Params, optimisers and random state are as
        before, and so are all files; the message names an earlier checkpoint if there is one, which
        is not taken silently.
    """
    _check_svi(svi)
    watch(svi)  # what comes after is seen, also where there is no checkpoint yet
    reader = CheckpointReader(state.codec(), path)
    check_classes(reader, state.classes(svi))
    strict = reader.checkpoint.versions == state.versions()
    before = state.snapshot(svi, modules)
    try:
        declared = reader.part("params", dict).keys() <= set(pyro.get_param_store().keys())
        if not declared or not optimisers.has_stepped(svi.optim):
            state.declare(reader, svi, args, kwargs)
        params = state.prepare_params(reader)
        commits = [
            # Those that may call code of the user, and so fail, come first.
            *state.prepare_modules(reader, svi, modules),
            prepare_loss(reader, loss_of(svi)),
            state.prepare_optimiser(reader, svi, strict),
            state.prepare_attributes(reader, svi),
            *params,
            state.prepare_random(reader),
        ]
        reader.warn_of_versions(state.versions())  # an error, for those who want it so
        for commit in commits:
            commit()
    except BaseException:
        before.restore()
        raise
    return reader.checkpoint


def _check_svi(svi: Any) -> None:
    if not isinstance(svi, SVI):
        raise TypeError(checkpoints.no_svi(svi, "pyro.infer.SVI"))
