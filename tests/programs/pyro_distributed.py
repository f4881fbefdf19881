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
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import infer, poutine
from pyro.nn import PyroModule, PyroSample
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_spread import (
    KL,
    MMD,
    R1,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    LaplaceKernel,
    PriorContrastELBO,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    WassersteinCritic,
    concat_sites,
)

# No two sizes alike: a dimension of the size of a shard is the one over the data.
NUM_DATA, BATCH, X_DIM, Z_DIM, HIDDEN, STEPS = 60, 12, 3, 2, 8, 4
SHARDS = {1: [12], 2: [6, 6]}
UNEVEN = {1: [12], 2: [5, 7]}
WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))
NOISE = {"x": GaussianNoise(0.3)}
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


def net(*sizes):
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _counted(mask):
    return True if mask is None else mask


class Model(PyroModule):
    """A deterministic decoder, whose noise may have a learned scale."""

    def __init__(self, scale=None, plain_plate=False, weight=1, global_latent=False):
        super().__init__()
        self.decoder = net(Z_DIM, HIDDEN, X_DIM)
        self.scale, self.plain_plate, self.weight = scale, plain_plate, weight
        if global_latent:
            self.shift = PyroSample(dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1))

    def forward(self, x, mask=None):
        shift = getattr(self, "shift", 0.0)
        plate = (len(x),) if self.plain_plate else (NUM_DATA, len(x), x)
        scale, counted = poutine.scale(scale=self.weight), poutine.mask(mask=_counted(mask))
        with pyro.plate("data", *plate), scale, counted:
            z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
            mean = self.decoder(z) + shift
            if self.scale is None:
                pyro.sample("x", dist.Delta(mean, event_dim=1), obs=x)
            else:
                pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    """A Normal of the encoder's, or an implicit distribution."""

    def __init__(self, implicit=False, plain_plate=False, weight=1, global_latent=False):
        super().__init__()
        self.implicit, self.plain_plate, self.weight = implicit, plain_plate, weight
        self.encoder = net(2 * X_DIM if implicit else X_DIM, HIDDEN, Z_DIM * (1 if implicit else 2))
        if global_latent:
            self.loc = nn.Parameter(torch.zeros(X_DIM))
            shift = PyroSample(lambda self: dist.Normal(self.loc, 0.5).to_event(1))
            self.shift = shift

    def forward(self, x, mask=None):
        getattr(self, "shift", None)
        plate = (len(x),) if self.plain_plate else (NUM_DATA, len(x), x)
        scale, counted = poutine.scale(scale=self.weight), poutine.mask(mask=_counted(mask))
        with pyro.plate("data", *plate), scale, counted:
            if self.implicit:

                def fn(eps):
                    return self.encoder(torch.cat([eps, x.expand(eps.shape)], -1))

                base = dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1)
                fn_dist = ImplicitDistribution(fn, base, event_shape=(Z_DIM,))
            else:
                loc, log_scale = self.encoder(x).chunk(2, -1)
                fn_dist = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", fn_dist)


class Head(nn.Module):
    """The Gaussian of an adaptive contrast."""

    def __init__(self, batch_norm=False):
        super().__init__()
        self.net = nn.Linear(X_DIM, 2 * Z_DIM)
        if batch_norm:
            self.net = nn.Sequential(nn.BatchNorm1d(X_DIM), self.net)

    def forward(self, x, mask=None):
        loc, log_scale = self.net(x).chunk(2, -1)
        return loc, log_scale.exp()


class NoGuide(nn.Module):
    """Nothing to infer."""

    def forward(self, x, mask=None):
        pass


def critic(*names):
    sizes = {"x": X_DIM, "z": Z_DIM}
    return concat_sites(net(sum(sizes[name] for name in names), HIDDEN, 1), *names)


def generator():
    return Model(), NoGuide()


def encoder(scale=None, implicit=False, **options):
    def make():
        return Model(scale, **options), Guide(implicit, **options)

    return make


def prior(**options):
    return PriorContrastELBO(critic("x", "z"), num_moment_draws=16, num_critic_draws=4, **options)


def joint(divergence=None, **options):
    return JointContrastELBO(critic("x", "z"), divergence, NOISE, **options)


implicit = encoder(0.5, implicit=True)
# Name, nets, loss, options of the run.
CASES = {
    "spread": (encoder(), lambda: SpreadELBO(NOISE), {}),
    "spread_mean_field": (
        encoder(0.5),
        lambda: SpreadELBO(NOISE, infer.TraceMeanField_ELBO(num_particles=2)),
        {},
    ),
    "spread_masked": (encoder(), lambda: SpreadELBO(NOISE), {"masked": True}),
    "spread_global_latent": (
        encoder(global_latent=True),
        lambda: SpreadELBO(NOISE),
        {"shared": True},
    ),
    "spread_plain_plate": (
        encoder(plain_plate=True),
        lambda: SpreadELBO(NOISE),
        {"sgd": 1e-3 * WORLD},
    ),
    "spread_scaled": (
        encoder(plain_plate=True, weight=WORLD, global_latent=True),
        lambda: SpreadELBO(NOISE),
        {"sizes": UNEVEN, "shared": True},
    ),
    "adversarial": (generator, lambda: AdversarialDivergence(critic("x"), noise=NOISE), {}),
    "adversarial_two_pass": (
        generator,
        lambda: AdversarialDivergence(
            critic("x"), JSPi(0.3), NOISE, regularizer=R1(1.0, every=2), update="two_pass"
        ),
        {"masked": True},
    ),
    "adversarial_uneven": (
        generator,
        lambda: AdversarialDivergence(
            critic("x"), KL(), NOISE, regularizer=R1(1.0), num_particles=2
        ),
        {"sizes": UNEVEN},
    ),
    "wasserstein": (generator, lambda: WassersteinCritic(critic("x"), noise=NOISE), {}),
    "wasserstein_masked": (
        generator,
        lambda: WassersteinCritic(critic("x"), noise=NOISE),
        {"masked": True, "sizes": UNEVEN},
    ),
    "prior_plain": (implicit, lambda: prior(adaptive=False, regularizer=R1(0.1)), {}),
    "prior_adaptive": (implicit, lambda: prior(noise=NOISE), {}),
    "prior_default_draws": (implicit, lambda: PriorContrastELBO(critic("x", "z")), {}),
    "prior_masked": (implicit, lambda: prior(head=Head()), {"masked": True}),
    "prior_masked_shard": (
        implicit,
        lambda: prior(regularizer=R1(0.1)),
        {"masked": True, "masked_shard": True, "unused": True},
    ),
    "joint": (implicit, joint, {}),
    "joint_masked": (implicit, lambda: joint(regularizer=R1(1.0)), {"masked": True}),
    "joint_ali": (implicit, lambda: joint(JSPi(0.5)), {"masked": True, "sizes": UNEVEN}),
    "joint_npe": (
        encoder(0.5),
        lambda: JointContrastELBO(divergence=KL()),
        {"masked": True, "sizes": UNEVEN, "unused": True},
    ),
    "semi_implicit": (
        implicit,
        lambda: SemiImplicitELBO({"z": GaussianNoise(0.2)}, num_mixture=4),
        {},
    ),
    "mmd": (generator, lambda: MMD(GaussianKernel([0.5, 1.0]), NOISE), {}),
    "mmd_masked": (
        generator,
        lambda: MMD(LaplaceKernel(1.0), NOISE, num_particles=2, block_size=4),
        {"masked": True, "sizes": UNEVEN},
    ),
    "energy": (generator, lambda: EnergyDistance(noise=NOISE), {}),
    "energy_uneven": (generator, EnergyDistance, {"sizes": UNEVEN}),
    "sliced": (generator, lambda: SlicedWasserstein(10, NOISE), {}),
    "sliced_masked": (
        generator,
        lambda: SlicedWasserstein(10, p=1.0),
        {"masked": True, "sizes": UNEVEN},
    ),
}


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
