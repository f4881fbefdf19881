# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Every loss trained on one batch, by one process or by the ranks of torchrun.

The noise of a datum is the same however the batch is shared out, so that both ends can be compared.
Writes what the params became, and what was refused.

    python pyro_distributed.py OUTPUT [NAME ...]
    torchrun --standalone --nproc-per-node 2 pyro_distributed.py OUTPUT
"""

import json
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import infer
from pyro_distributed_cases import (
    BATCH,
    CASES,
    NOISE,
    STEPS,
    WORLD,
    X_DIM,
    Head,
    NoGuide,
    encoder,
    generator,
    implicit,
    prior,
)
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_spread import R1, AdversarialDivergence, EnergyDistance, SpreadELBO, concat_sites

SHARDS = {1: [12], 2: [6, 6]}
RANK = int(os.environ.get("RANK", 0))
aten = torch.ops.aten


class PerDatum(TorchDispatchMode):
    """
    Draws for the whole batch of which every rank takes its rows; others are each rank's own.

    :param sizes: of the ranks' shards.
    :param shared: whether draws that are not per datum are the same on all ranks.
    """

    def __init__(self, sizes, shared):
        super().__init__()
        self.sizes, self.shared = sizes, shared
        self.generator = torch.Generator().manual_seed(5)
        self.own = torch.Generator().manual_seed(100 + RANK)

    def draw(self, shape, fill):
        size, start = self.sizes[RANK], sum(self.sizes[:RANK])
        dims = [dim for dim, length in enumerate(shape) if length == size]
        whole = [BATCH if dim in dims else length for dim, length in enumerate(shape)]
        value = fill(torch.empty(whole), self.generator)
        if not dims and RANK and not self.shared:
            return fill(torch.empty(whole), self.own)
        return value.narrow(dims[0], start, size).contiguous() if dims else value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def normal(x, generator):
            return x.normal_(generator=generator)

        def uniform(x, generator):
            return x.uniform_(generator=generator)

        if func is aten.normal_.default:
            return args[0].copy_(self.draw(args[0].shape, normal))
        if func is aten.normal.Tensor_Tensor:
            return args[0] + args[1] * self.draw(args[0].shape, normal)
        if func is aten.randn.default:
            return self.draw(args[0], normal)
        if func is aten.rand.default:
            return self.draw(args[0], uniform)
        if func is aten._standard_gamma.default:
            alpha = args[0].flatten()[0]

            def gamma(x, generator):
                return torch._standard_gamma(torch.full_like(x, alpha), generator)

            return self.draw(args[0].shape, gamma)
        assert torch.Tag.nondeterministic_seeded not in func.tags, func
        return func(*args, **(kwargs or {}))


def build(nets, make_loss):
    """The complete module, with the same params on all ranks."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide = nets()
    loss = make_loss()
    return loss(model, guide), loss


def train(
    nets,
    make_loss,
    sizes=SHARDS,
    masked=False,
    shared=False,
    sgd=None,
    unused=False,
    masked_shard=False,
):
    """Params and losses of a run."""
    module, _ = build(nets, make_loss)
    params = list(module.parameters())
    start = {f"start.{name}": p.detach().clone().numpy() for name, p in module.named_parameters()}
    optim = torch.optim.SGD(params, sgd) if sgd else torch.optim.Adam(params, 1e-2)
    rows = torch.Generator().manual_seed(9)
    pyro.set_rng_seed(1000 + RANK)
    sizes = sizes[WORLD]
    mine = slice(sum(sizes[:RANK]), sum(sizes[: RANK + 1]))
    wrapped = module
    if WORLD > 1:
        wrapped = DistributedDataParallel(module, find_unused_parameters=unused)
    mode = PerDatum(sizes, shared)
    losses = []
    for step in range(STEPS):
        # A rank that skips what would not count draws less than the others.
        mode.generator.manual_seed(5 + step)
        x = torch.randn(BATCH, X_DIM, generator=rows)[mine]
        # More of the first rank's data are masked than of the others'.
        mask = torch.rand(BATCH, generator=rows) > torch.linspace(0.8, 0.0, BATCH)
        if masked_shard:
            mask[: BATCH // 2] = False
        mask = mask[mine]
        optim.zero_grad()
        with mode:
            loss = wrapped(x, mask=mask if masked else None)
        loss.backward()
        optim.step()
        losses.append(float(loss.detach()))
    return start | {name: p.detach().numpy() for name, p in module.named_parameters()}, losses


@contextmanager
def refusal(said, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
            said[name] = None
        except (ValueError, NotImplementedError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    if caught and said[name] is None:
        said[name] = f"warning: {caught[-1].message}"


class Enumerated(nn.Module):
    """A discrete latent of all data together."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        k = pyro.sample("k", dist.Bernoulli(logits=self.logit), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Delta(k.unsqueeze(-1) + torch.zeros(len(x), 3), event_dim=1), obs=x
            )


def refusals():
    """What the losses say under several ranks."""
    said = {}
    x = torch.randn(6, X_DIM)
    for name, nets, loss in [
        (
            "tail_adaptive",
            encoder(0.5),
            lambda: SpreadELBO(NOISE, infer.TraceTailAdaptive_ELBO(2, vectorize_particles=True)),
        ),
        (
            "batch_norm",
            generator,
            lambda: AdversarialDivergence(
                concat_sites(nn.Sequential(nn.BatchNorm1d(X_DIM), nn.Linear(X_DIM, 1)))
            ),
        ),
        ("head_batch_norm", implicit, lambda: prior(head=Head(batch_norm=True))),
        (
            "enumerated",
            lambda: (Enumerated(), NoGuide()),
            lambda: SpreadELBO(NOISE, infer.TraceEnum_ELBO(max_plate_nesting=1)),
        ),
    ]:
        module, _ = build(nets, loss)
        pyro.set_rng_seed(1000 + RANK)
        with refusal(said, name):
            module(x)
    for name, seed in (("equal_noise", 7), ("own_noise", 7 + RANK)):
        module, _ = build(generator, EnergyDistance)
        pyro.set_rng_seed(seed)
        with refusal(said, name):
            module(x)
    # The first rank has nothing to teach the critic; all must still agree when the penalty comes.
    module, _ = build(implicit, lambda: prior(regularizer=R1(0.1, every=2)))
    pyro.set_rng_seed(1000 + RANK)
    with refusal(said, "lazy_penalty"):
        for _ in range(6):
            module(x, mask=torch.full((len(x),), RANK > 0 or WORLD == 1))
    # Without gradients a rank is alone: if the others were waited for, this would not end.
    module, loss = build(generator, EnergyDistance)
    if RANK == 0:
        with refusal(said, "evaluation"), torch.no_grad():
            module(x)
    # A group of one rank each: nobody else's samples.
    if WORLD > 1:
        groups = [distributed.new_group([rank]) for rank in range(WORLD)]
        loss.process_group = groups[RANK]
        with refusal(said, "own_group"):
            module(x)
    return said


def main():
    output = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    if WORLD > 1:
        distributed.init_process_group("gloo")
    losses = {}
    for name in sys.argv[2:] or CASES:
        nets, loss, options = CASES[name]
        params, losses[name] = train(nets, loss, **options)
        if RANK == 0:
            np.savez(output / f"{name}.npz", **params)
    said = refusals()
    (output / f"rank{RANK}.json").write_text(json.dumps({"losses": losses, "said": said}))
    if WORLD > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
