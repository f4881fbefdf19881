# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AdversarialDivergence: a divergence between data and model, estimated by a classifier."""

from __future__ import annotations

import torch

from pyro_spread.infer._critic_loss import CriticLoss
from pyro_spread.ratio._last_layer import refuse_bounded_logits
from spread_core.logits import Logits
from spread_core.losses.adversarial_divergence import AdversarialDivergenceShared

_WATCH_EVERY = 4


class AdversarialDivergence(AdversarialDivergenceShared, CriticLoss):
    r"""
    Divergence of the data P from the model Q, with the log-ratio learned by a classifier.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> pyro.clear_param_store()
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(1, 1), "x"), JSPi(0.5))
        >>> adam = pyro.optim.Adam({"lr": 1e-3})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 2e-3}))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> 0 <= svi.step(torch.randn(100)) <= 0.7
        True

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: every player's mean is that
    over the whole batch, whatever the shards, if something counts on each. The value is that of the
    rank's own shard. Discriminators with batch normalisation couple the shard's samples and are
    refused, except ``SyncBatchNorm``.
    """

    _remembers = ("_monitor", "_watched")
    _zeros = staticmethod(torch.zeros)
    _refuse_bounded_logits = staticmethod(refuse_bounded_logits)

    def _pushes_ahead(self, logits: Logits) -> tuple[torch.Tensor, torch.Tensor]:
        at_data, at_model = self._pushes(logits)
        if self.generator == "divergence":
            data, _, weights, _ = logits
            _, slopes = self._pushes(Logits(data, data, weights, weights))
            at_data = self._at_data(data.detach(), slopes)
        return at_data, at_model

    def _watch(self, logits: Logits) -> None:
        self._watched += 1
        # Looking takes time: every step is looked at once one of them was amiss.
        streak = self._monitor.streak or self._range.streak or self._clamp.streak
        if not streak and self._watched % _WATCH_EVERY:
            return
        self._range.observe(*map(float, logits.range()))
        if self._is_bounded:
            self._clamp.observe(float(self._estimate(logits)))
        right, flat = self._shares(logits)
        self._monitor.observe(float(right), float(flat))
