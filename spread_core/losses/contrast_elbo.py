# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO: what is the same in both backends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spread_core.caller_warning import warn_user
from spread_core.contrast_options import ContrastOptions
from spread_core.loss_words import NOT_A_BOUND, LossWords
from spread_core.messages import contrasts
from spread_core.monitors import FalseEvidenceWarning
from spread_core.shared_docs import SharedDocs
from spread_core.validation import check_count

#: Draws of the contrast per datum, for the normaliser at each held-out draw.
NUM_NORMALISER_DRAWS = 256


class PriorContrastShared(SharedDocs):
    r"""
    ELBO of a guide with sites that can be sampled but have no density.

    At an :class:`ImplicitDistribution` in the guide, :math:`\log q(z \mid x)` is replaced by
    :math:`T(z, x) + \log c(z)`, where the critic T is trained by the logistic loss to distinguish
    the guide's draws from those of a contrast c, so that at its optimum
    :math:`T = \log q(z \mid x) / c(z)` [1]. Sites with densities keep them, and scales, masks and
    plates act on the ratio as on any log density: with no implicit site it is the stock
    ``Trace_ELBO``. Guide and model get the gradient with the critic frozen, the critic that of the
    logistic loss with all draws frozen.

    The reported loss is minus an **adversarial ELBO estimate** in nats. It is **not a bound**: a
    critic that lags behind reports values above the evidence. Compare models by
    ``ais_log_likelihood`` instead.

    No normalised density scores better on the guide's draws than the guide's own, so that whatever
    another one gains on the critic's estimate of :math:`\log q`, the reported value is too high by,
    at least. In training, every eighth step is compared with a Gaussian that has the mean and the
    covariance of each datum's draws; a gap above 0.3 nats, and above 0.1 nats per datum, that has
    stayed for half of the steps so far is a
    :class:`FalseEvidenceWarning`. Where that cannot be, accuracy is watched: a critic that is right
    about nearly all draws is one that guesses. So it is with implicit priors, fewer than six draws
    (with a head or against the prior, latents of images too), and in compiled steps of Pyro.
    :meth:`held_out_check` also fits critics and normalises them, so that it sees what is not
    Gaussian, too.

    The contrast is adaptive by default [1, section 4]: a Gaussian with the moments of
    :math:`q(z \mid x)` for each datum, and the critic sees z standardised by them. The critic then
    only has to learn the shape of the guide, whereas against the prior it fails as soon as the KL
    divergence is a few nats.

    **References**

    [1] `Adversarial Variational Bayes: Unifying Variational Autoencoders and Generative Adversarial
    Networks`, Lars Mescheder, Sebastian Nowozin, Andreas Geiger, https://arxiv.org/abs/1701.04722

    [2] `Variational Inference using Implicit Distributions`, Ferenc Huszar,
    https://arxiv.org/abs/1702.08235

    :param discriminator: one module for all implicit sites together, or a dict from site to module.
        Each is called as ``discriminator(values, *args, **kwargs)``, where ``values`` is
        a dict of its sites and ``args`` are those of the model, and returns logits of the plates'
        batch shape. ``concat_sites(net, "x", "z")`` finds guide sites drawn before, what the guide
        computed before (``deterministic`` sites, as constants) and the model's arguments by name.
    :param noise: dict from observed site to noise kernel, or a callable that returns one: data and
        model are spread as by :class:`SpreadELBO`, for deterministic likelihoods.
    :param adaptive: whether the contrast is the Gaussian with the guide's moments (exact at any KL
        divergence) or the model's prior at the site given the guide's other draws (right only at a
        small one). The prior needs a density if adaptive, and if its params are learned.
    :param data: dict from site to the name of the model argument that carries its data, for
        ``noise``. Left out: the argument of the site's name, else the first.
    :param head: a module ``head(*args, **kwargs) -> (loc, scale)``, or a dict from site to such
        pairs: the Gaussian :math:`r(z \mid x)` of the contrast. It is fitted to the guide's draws
        by maximum likelihood, as part of the discriminator, and spares the draws for the moments.
        It gets the arguments reduced to what plates subsampled, or what
        ``concat_sites(net, "features")`` looks up. For a vector z, scale may be the lower Cholesky
        factor of a full covariance, of shape batch + (D, D).
    :param annealing: number of steps over which the weight of the likelihood rises to one; or a
        callable of the model's arguments that returns the weight.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param num_moment_draws: draws S of the guide per datum for the moments; by default 4096 over
        the number of data, 32 to 1024. They scatter by 1/sqrt(S) of the guide's standard deviation,
        which blurs what the critic sees: modes much narrower than the whole need more.
    :param num_critic_draws: draws per datum that the critic is trained on; by default as many as
        make 128 in all. Several implicit sites under one critic have one.
    :param num_particles: number of draws of the guide per datum and step in the ELBO.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        discriminator: Any,
        head: Any,
        annealing: Any,
        options: ContrastOptions,
        spreading: Any,
        **of_elbo: Any,
    ) -> None:
        """
        Keep the arguments.

        :param options: the arguments that all parts of a step read.
        :param spreading: the backend's noise on the data.
        :param of_elbo: arguments of the stock ELBO.
        """
        if annealing is not None and not callable(annealing):
            check_count("annealing", annealing)
            annealing = int(annealing)
        if getattr(head, "names", None) == ():  # of concat_sites
            raise ValueError(contrasts.nameless_head())
        super().__init__(**{"num_particles": options.num_particles, **of_elbo})
        self.discriminator = discriminator
        self.head = head
        self.annealing = annealing
        self.adaptive = options.adaptive
        self.regularizer = options.regularizer
        self.num_moment_draws = options.num_moment_draws
        self.num_critic_draws = options.num_critic_draws
        self.name = options.name
        self.noise, self.data = spreading.noise, spreading.data
        self._options, self._spreading = options, spreading

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(
            type(self).__name__,
            "minus the adversarial ELBO",
            caution=NOT_A_BOUND,
            sides=("guide", "contrast"),
            is_sum=True,
        )

    def _checked(self, report: Any, num_data: float = 1.0) -> Any:
        """
        The result of :meth:`held_out_check`, with a warning if the evidence is false.

        :param report: both estimates.
        :param num_data: number of data that they are of.
        """
        report = replace(report, num_data=num_data)
        if report.is_false():
            message = contrasts.false_evidence_gap(report.gap, report.standard_error)
            warn_user(message, FalseEvidenceWarning)
        return report
