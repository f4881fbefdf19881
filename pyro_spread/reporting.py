# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Monitoring a training run: numbers for a progress bar, and an HTML page."""

from __future__ import annotations

import math
import os
import warnings as python_warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import nn

from pyro_spread import _parents
from pyro_spread._reachable_modules import loss_of
from pyro_spread._transaction import looking
from pyro_spread.guard import FiniteGuard
from pyro_spread.infer._datum import datum_rows, frames_of, parts_left_out
from pyro_spread.infer._joint_sides import _plates_of, _run_forward, data_plates
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._sites import is_latent
from pyro_spread.infer._two_sides import is_compared, mask_at
from pyro_spread.optim import TwoPlayer
from spread_analysis.history import History
from spread_analysis.log_evidence import any_of_datum
from spread_analysis.report import CriticLogits, Report, describe, write_report
from spread_analysis.report.gather import (
    Draws,
    Options,
    assemble,
    count_data,
    pool_latents,
    rows_of,
)
from spread_analysis.report.words import figures_of, shorten
from spread_core.messages import report as report_messages

__all__ = ["diagnose", "report"]


def diagnose(svi: SVI, *args: Any, **kwargs: Any) -> dict[str, float]:
    """
    The numbers to watch during training: for progress bars, TensorBoard and so on.

    It changes nothing, neither params, optimiser and buffers nor the random state: a run ends in
    the same state with and without it. It costs about as much as the forward half of a step: call
    it every hundred steps or so.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import AdversarialDivergence, History, concat_sites, diagnose
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> pyro.clear_param_store()
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(1, 1), "x"))
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> history = History()
        >>> for step in range(1, 21):
        ...     _ = svi.step(torch.randn(100))
        ...     if step % 10 == 0:
        ...         history.add(step, diagnose(svi, torch.randn(100)))
        >>> list(history.postfix())
        ['divergence', 'critic_accuracy']

    :param svi: an SVI that has made a step.
    :param args: positional arguments of model and guide, the data among them; held-out ones tell
        more.
    :param kwargs: keyword arguments of both.
    :return: ``loss``; ``divergence``, the same number, where the loss is an estimate of one; and
        for each critic that is a classifier ``critic_accuracy``, ``critic_divergence`` (its
        estimate of JS_pi, in nats), ``critic_saturated`` and ``log_ratio_gap`` (nats), with "/site"
        behind where there is one critic per site. What a contrast ELBO reports is an estimate and
        not a bound.
    :raises ValueError: if the SVI has no loss object, or has made no step yet.
    """
    loss = _loss_of(svi)
    with _unchanged(), torch.no_grad():
        value, logits = _ask(loss, svi, args, kwargs)
    return figures_of(describe(loss), value, logits)


def report(
    path: str | os.PathLike[str],
    svi: SVI,
    *args: Any,
    losses: ArrayLike | None = None,
    history: History | None = None,
    num_samples: int = 1000,
    image_shape: Sequence[int] | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    warnings: Iterable[Any] = (),
    datum: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """
    Write one HTML page about a training run and its results.

    The page holds everything it needs, pictures included: loss and divergence curves, the model's
    samples next to the data, sample metrics, calibration of the critic, overlap of supports, the
    posterior's pair plot, warnings, settings and versions. If a loss lacks something, the page says
    so. Samples and metrics are of clean draws, without spread noise. Params, optimiser, buffers and
    random state are afterwards as they were.

        >>> import tempfile, torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import MMD, GaussianKernel, report
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> pyro.clear_param_store()
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), MMD(GaussianKernel(1.0)))
        >>> losses = [svi.step(torch.randn(100)) for _ in range(20)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(f"{folder}/run.html", svi, torch.randn(100), losses=losses)
        ...     page.path.name
        'run.html'

    :param path: of the page; an older one is replaced.
    :param svi: an SVI that has made a step.
    :param args: positional arguments of model and guide, the data among them: held-out ones tell
        more, a few thousand are enough. Latents in no plate of the data come from the guide, all
        others from the prior.
    :param losses: the loss of every step.
    :param history: the values of :func:`diagnose` during training.
    :param num_samples: how many samples, and data, are shown and compared.
    :param image_shape: ``(height, width)``, maybe with a channel axis, if the data are images.
    :param title: of the page.
    :param settings: further settings by name, to be noted on the page.
    :param warnings: warnings of the training run, such as ``catch_warnings(record=True)`` gives;
        those of this library's losses are known without it.
    :param datum: index of the datum whose posterior is shown; None is all together.
    :param seed: of the draws for this page.
    :param kwargs: keyword arguments of model and guide.
    :return: what the page shows, as arrays.
    :raises ValueError: if the model observes nothing, the SVI has made no step, or an argument
        does not fit; nothing is written then.
    :raises OSError: if the page cannot be written.
    :raises ImportError: if the ``analysis`` extra is missing.
    """
    options = Options(
        path, losses, history, num_samples, image_shape, title, settings, warnings, datum, seed
    )
    loss = _loss_of(svi)
    rng_seed = torch.initial_seed()
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always")
        with _unchanged(), torch.no_grad():
            pyro.set_rng_seed(seed)
            draws = _draw(loss, svi, options, args, kwargs)
    draws.troubles += caught
    backend = {
        "Optimiser": _describe_optimiser(svi.optim),
        "Networks": _describe_networks(loss),
        "Seeds": {"of PyTorch, set last": str(rng_seed)},
    }
    found = assemble(options, loss, draws, backend, ("torch", "pyro-ppl"))
    write_report(found)
    for item in caught:  # they are on the page, and heard of too
        python_warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    return found


def _loss_of(svi: SVI) -> Any:
    loss = loss_of(svi)
    if not isinstance(loss, ELBO):
        raise ValueError(report_messages.report_no_loss(svi.loss))
    return loss


@contextmanager
def _unchanged() -> Iterator[None]:
    """Afterwards random state, buffers and params are as before; new params are an error."""
    store = pyro.get_param_store()
    params = set(store.keys())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)), looking():
        yield
        new = set(store.keys()) - params
    if new:
        way_out = "Train first: svi.step makes them."
        raise ValueError(report_messages.report_unknown_params(new, way_out))


def _ask(loss: Any, svi: SVI, args: Any, kwargs: Any) -> tuple[float, dict[str, CriticLogits]]:
    """What the loss reports, and the logits of its critics by critic."""
    if not isinstance(loss, Loss):
        return float(loss.loss(svi.model, svi.guide, *args, **kwargs)), {}
    value, said = loss.look(svi.model, svi.guide, *args, **kwargs)
    return value, {name: CriticLogits.of(logits) for name, logits in said.items()}


def _draw(loss: Any, svi: SVI, options: Options, args: Any, kwargs: Any) -> Draws:
    model, guide, number = svi.model, svi.guide, options.num_samples
    trained = guide, args, kwargs
    if isinstance(loss, Loss):
        trained = loss.guide_as_trained(model, guide, args, kwargs)
    plates = data_plates(model, args, kwargs)

    def run_guide(guide: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return poutine.trace(guide).get_trace(*args, **kwargs)

    trace = run_guide(guide, args, kwargs)
    shared = {n for n, s in trace.nodes.items() if is_latent(s) and not _plates_of(s) & plates}
    data: dict[str, Any] = {}
    samples: dict[str, list[Any]] = {}
    drawn = 0
    while drawn < number:
        leaves = {name: trace.nodes[name]["value"] for name in shared}
        sites = _run_forward(model, trace, leaves, args, kwargs).nodes
        observed = {
            n: s for n, s in sites.items() if is_compared(s) and not isinstance(s["fn"], Unit)
        }
        if not observed:
            raise ValueError(report_messages.report_no_data())
        for name, site in observed.items():
            value = site["value"]
            mask = mask_at(name, site, value)
            mask = None if mask is None else datum_rows(mask, site)[0]
            if not drawn:
                obs = torch.as_tensor(site["infer"]["obs"], device=value.device)
                data[name] = rows_of(*datum_rows(obs.expand(value.shape), site), mask)
            samples.setdefault(name, []).append(rows_of(*datum_rows(value, site), mask))
        drawn += max(1, len(next(iter(samples.values()))[-1]))
        trace = run_guide(guide, args, kwargs)
    rows = [len(value) for value in data.values()]
    one_by_one = bool(shared) or options.datum is not None
    runs = []
    for _ in range(number if one_by_one else -(-number // max(1, *rows))):
        trace = run_guide(*trained)
        runs.append(
            {
                name: datum_rows(site["value"], site)
                for name, site in trace.nodes.items()
                if is_latent(site) and not site["infer"].get("is_auxiliary")
            }
        )
    latents, latents_of = pool_latents(runs, shared, options.datum)
    joined = {name: np.concatenate(values) for name, values in samples.items()}
    draws = Draws(data, joined, latents, latents_of, num_data=_num_data(observed))
    try:
        draws.value, draws.logits = _ask(loss, svi, args, kwargs)
    except ValueError as error:
        draws.loss_refused(error)
    return draws


def _num_data(observed: Mapping[str, Any]) -> float:
    """How many data the sites are of: elements of the outermost plate, scaled as the loss is."""
    counted = []
    for name, site in observed.items():
        value, scale = site["value"], torch.as_tensor(site["scale"]).unique()
        if len(scale) > 1 or not all(frame.vectorized for frame in frames_of(site)):
            return math.nan
        mask = mask_at(name, site, value)
        kept = np.ones(value.shape, bool) if mask is None else mask.cpu().numpy()
        axes = [frame.dim - site["fn"].event_dim for frame in frames_of(site)[:1]]
        counted.append((any_of_datum(kept, axes), float(scale) / parts_left_out(site)))
    return count_data(counted)


def _describe_optimiser(optim: Any) -> dict[str, str]:
    if isinstance(optim, FiniteGuard):
        return _describe_optimiser(optim.guarded) | {"on_nonfinite": optim.on_nonfinite}
    if isinstance(optim, TwoPlayer):
        return {
            "generator": _describe_player(optim.generator),
            "discriminator": _describe_player(optim.discriminator),
            "discriminator_steps": str(optim.discriminator_steps),
            "ema": str(optim.ema),
        }
    return {"optimiser": _describe_player(optim)}


def _describe_player(optim: Any) -> str:
    kind = getattr(optim, "pt_optim_constructor", type(optim))
    told = getattr(optim, "pt_optim_args", "")
    if isinstance(told, Mapping):
        told = ", ".join(f"{name}={shorten(value)}" for name, value in told.items())
    return shorten(f"{getattr(kind, '__name__', kind)}({shorten(told)})")


def _describe_networks(loss: Any) -> dict[str, str]:
    """Names of the nets and their numbers of params."""
    found = {}
    for name in ("discriminator", "head"):
        net = getattr(loss, name, None)
        if isinstance(net, nn.Module):
            count = sum(param.numel() for param in net.parameters())
            found[name] = f"{type(net).__name__}, {count:,} params"
    store = pyro.get_param_store()
    sizes: dict[str, int] = {}
    for name in store.keys():  # noqa: SIM118, the store iterates otherwise
        owner = name.split("$$$")[0]
        sizes[owner] = sizes.get(owner, 0) + _parents.stored_params()[name].numel()
    for name, size in sizes.items():
        found.setdefault(name, f"{size:,} params")
    return found
