# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from array_api_compat import array_namespace

from spread_core.amortized.context import Context
from spread_core.amortized.density import Conditional, log_probs_of_group
from spread_core.amortized.embedded import HasEmbedding, seen
from spread_core.amortized.flow_sites import HasDensity, conditional_class
from spread_core.amortized.given import Given
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import FAR
from spread_core.amortized.plates import HasPlates
from spread_core.amortized.tables import ReadsTables
from spread_core.math._arrays import Array, cast, stop_gradient
from spread_core.messages import amortized as messages
from spread_core.messages import players
from spread_core.shared_docs import SharedDocs
from spread_core.validation import check_count

Visit = Callable[[Group, Variable, Conditional], Array]


class AutoAmortizedShared(HasPlates, ReadsTables, HasDensity, HasEmbedding, SharedDocs):
    r"""
    An amortised posterior: a conditional density over all latents of a model, given its data.

    It conditions on the values at the observed sites of the model at the arguments it is called
    with. All latents are modelled jointly: those in no plate first, then those in plates, each
    given the data and all latents before it. Every number has a mixture of Gaussians of its own,
    truncated to the support where that is an interval, and on the unconstrained space otherwise;
    discrete latents of finite support have a categorical distribution. Draws and densities are
    exact. With another ``density`` every continuous site has a flow on the unconstrained space.

    Latents see data in their own plates as they are. Data in further plates they see by their mean,
    spread and count, whatever their order [2]; where the count varies, by the mean as far as it is
    to be believed [6].

    Data and latents are standardised by simulations of the model, when the guide is first called;
    what this gives is kept with the params.

    Under ``JointContrastELBO(divergence=KL())`` this is neural posterior estimation [1]; where the
    model has a density ``Trace_ELBO`` trains it too.

    **References**

    [1] `Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation`, George Papamakarios, Iain Murray, https://arxiv.org/abs/1605.06376

    [2] `Deep Sets`, Manzil Zaheer et al., https://arxiv.org/abs/1703.06114

    [3] `Neural Spline Flows`, Conor Durkan et al., https://arxiv.org/abs/1906.04032

    [4] `Masked Autoregressive Flow for Density Estimation`, George Papamakarios et al.,
    https://arxiv.org/abs/1705.07057

    [5] `Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks`,
    Juho Lee et al., https://arxiv.org/abs/1810.00825

    [6] `Experience rating and credibility`, Hans Bühlmann, ASTIN Bulletin 4 (1967)

    :param model: the model.
    :param observed: name or names of the data sites. Left out: the sites that the model observes at
        the arguments it is first called with.
    :param density: ``"mixture"``; ``"nsf"`` or ``"maf"``, a neural spline flow [3] or a masked
        autoregressive flow [4] for every site, of the extra ``flows``; or a function of one's own
        that makes a site's density, as said above.
    :param hidden: sizes of the hidden layers of every number's net, or of every flow's.
    :param num_components: Gaussians in each mixture.
    :param ensemble: number of nets behind every number, or of flows behind every site, whose
        densities are averaged.
    :param embedding: nets in front of the data, trained with the rest; each member of the ensemble
        has its own. None: the nets see the data as they are. ``"mlp"``: two layers of 64 units and
        20 outputs for every data site. A module, for the one data site: it takes elements of shape
        (batch,) + shape of the site's event, standardised, a number as a vector of one, and
        returns (batch, K); see the note of this backend. A dict of these by site: other sites have
        none. In plates every element is embedded by itself, so that a summary of them is a deep
        set [2].
    :param summary: of data in further plates: ``"moments"``, their mean, spread and count; or
        ``"attention"``, pooling by multi-head attention with learned queries [5], in front of which
        sites without an embedding have an ``"mlp"``. Both ignore masked elements and their order.
    :param exchangeable: whether the elements of plates are alike, so that other latents need only a
        summary of them. If not, a plate is one long vector, of fixed size. None finds out from
        simulations, plate by plate.
    :param init_samples: runs of the model by which data and latents are standardised.
    :param create_plates: function of the model's arguments that returns plates, for subsampling.
    :param prefix: begins the names of the params.
    :raises ValueError: if a number makes no sense; when it is first called, if there are no
        latents or no data, ``observed`` names no site, a discrete latent has infinite support, a
        latent's support depends on other latents, or ``density`` makes none of a site's size.
    :raises ImportError: if ``density`` is one of the extra ``flows``, and that is missing.
    """

    #: Number of draws behind :meth:`median` and :meth:`quantiles`.
    num_quantile_draws = 1000

    prototype_trace: Any

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        observed: str | Sequence[str] | None = None,
        density: str | Callable[..., Any] = "mixture",
        hidden: Sequence[int] = (64, 64, 64),
        num_components: int = 8,
        ensemble: int = 1,
        embedding: Any = None,
        summary: str = "moments",
        exchangeable: bool | None = None,
        init_samples: int = 1000,
        create_plates: Callable[..., Any] | None = None,
        prefix: str = "auto",
    ) -> None:
        options = self._parent_options(model, prefix) | {"create_plates": create_plates}
        super().__init__(**options)
        hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        if not hidden or not all(isinstance(n, int) and n > 0 for n in hidden):
            raise ValueError(players.bad_range("hidden", hidden, "a sequence of layer sizes"))
        for name, count in {
            "num_components": num_components,
            "ensemble": ensemble,
            "init_samples": init_samples,
        }.items():
            check_count(name, count)
        self.observed = (observed,) if isinstance(observed, str) else observed
        if self.observed is not None:
            self.observed = tuple(self.observed)
        self.hidden, self.num_components, self.ensemble = hidden, num_components, ensemble
        self.init_samples, self.prefix = init_samples, prefix
        self._set_density(density)
        self.exchangeable = exchangeable
        self._set_embedding(embedding, summary)
        self._context: Context | None = None
        #: Plates whose elements differ: each is one long vector. None until it is known.
        self.ordered_plates: tuple[str, ...] | None = None

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        """Arguments of the backend's base class of autoguides."""
        raise NotImplementedError

    @property
    def context(self) -> Context:
        """Latents and data in groups, once the guide is set up."""
        if self._context is None:
            raise RuntimeError(messages.not_set_up())
        return self._context

    def options(self) -> dict[str, Any]:
        """What the guide was made with, beside the model; data sites are named."""
        data = [v.name for group in self.context.data for v in group.variables]
        return {
            "observed": data,
            "density": self.density,
            "hidden": list(self.hidden),
            "num_components": self.num_components,
            "ensemble": self.ensemble,
            "exchangeable": self.exchangeable,
            "prefix": self.prefix,
        } | self.embedding_options()

    def given(
        self, values: Mapping[str, Array], masks: Mapping[str, Any] | None = None
    ) -> Callable[..., Any]:
        """
        The guide for other data than those at the arguments, as of simulations.

        :param values: dict from data site to value; dims of particles may be in front.
        :param masks: dict from data site to what counts of its batch, where not all does.
        :return: a guide of the same signature.
        """
        return Given(self, values, masks)

    def params_name(self, group: Group) -> str:
        """
        What a group's nets are called among the params.

        :param group: the group.
        """
        return f"{self.prefix}_{group.key}"

    @property
    def net_names(self) -> list[str]:
        """The names of all nets among the params: those of groups, and of embeddings."""
        return [*map(self.params_name, self.context.groups), *self.learned_names]

    @property
    def standardisation_name(self) -> str:
        """What the standardisation is called among the params."""
        return f"{self.prefix}_standardisation"

    def _initial_sizes(self, fitted: Mapping[str, Any], group: Group) -> dict[str, Any]:
        """Keyword arguments of :func:`spread_core.amortized.mixture.initial`."""
        own = fitted["inputs"][group.key]
        before = self.size_before(group)
        seen = (
            self.context.size_seen(group) if self.learned_names else own["columns"]["loc"].shape[0]
        )
        return {
            "members": self.ensemble,
            "dims": group.size,
            "inputs": seen + before + self.size_learned(group),
            "features": own["features"]["loc"].shape[0] + 2 * before,
            "hidden": self.hidden,
            "components": self.num_components,
            "classes": max(v.num_classes for v in group.variables),
        }

    def _standardisation_of(self, params: Mapping[str, Any]) -> Any:
        """The standardisation among params, without gradients."""
        fitted = _constant(params[self.standardisation_name])
        decided = sorted(fitted.get("ordered", ()))
        if decided != self.context.ordered:
            raise ValueError(messages.decided_otherwise(decided, self.context.ordered))
        return fitted

    def size_before(self, group: Group) -> int:
        """
        How many numbers tell a group of the latents before it.

        :param group: the group.
        """
        context = self.context
        earlier = context.groups[: context.groups.index(group)]
        return sum(g.size * (1 if g.plates <= group.plates else 2) for g in earlier)

    def ends(self, group: Group, fitted: Mapping[str, Any]) -> Array:
        """
        Standardised ends of the intervals of a group's numbers, of shape (2, D).

        Where a number has none, how far it reaches: without end unless a table says more.

        :param group: the group.
        :param fitted: the standardisation.
        """
        own = fitted["latents"][group.key]
        xp = array_namespace(own["loc"])
        ends = [variable.ends() for variable in group.variables]
        raw = xp.concat([cast(end, own["loc"]) for end in ends], axis=1)
        return xp.where(xp.abs(raw) < FAR, (raw - own["loc"]) / own["scale"], own["reach"])

    def walk(
        self,
        params: Mapping[str, Any],
        values: Mapping[str, Array],
        masks: Mapping[str, Any],
        lead: int,
        visit: Visit,
    ) -> None:
        """
        Visit every latent, in order, with its conditional; a visit returns unconstrained vectors.

        :param params: of the guide, by name.
        :param values: data by site.
        :param masks: what counts of the data, by group.
        :param lead: number of leading dims of the data.
        :param visit: function of group, variable and conditional.
        """
        context = self.context
        fitted = self._standardisation_of(params)
        scores = context.scores(fitted, values, lead)
        told = self.told(scores, masks)
        told = {key: tuple(x[None] for x in parts) for key, parts in told.items()}
        learned = self.learned(params, told)
        latents: dict[str, Array] = {}
        for group in context.groups:
            described = context.described(group, fitted, scores, masks)
            before = context.before(group, latents)
            inputs, features = context.inputs(group, fitted, described, before)
            whole = seen(inputs[None], learned.get(group.key))
            own, ends = fitted["latents"][group.key], self.ends(group, fitted)
            xp, start = array_namespace(inputs), 0
            parts: list[Array] = []
            for variable in group.variables:
                flow = self.flow(variable, whole.shape[-1] + start)
                conditional = conditional_class(flow)(
                    params[self.params_name(group)],
                    own["loc"],
                    own["scale"],
                    ends,
                    xp.concat(parts, axis=-1) if parts else inputs[..., :0],
                    whole,
                    features[None],
                    variable,
                    start,
                    self.num_components,
                    own,
                )
                parts.append(conditional.standardise(visit(group, variable, conditional)))
                start += variable.size
            latents[group.key] = xp.concat(parts, axis=-1)

    def log_probs(
        self, params: Mapping[str, Any], prepared: Mapping[str, tuple[Array, ...]]
    ) -> dict[str, Array]:
        """
        Log density of every number for every member, on the standardised scale; for training.

        :param params: of the guide, by name.
        :param prepared: by group, what :meth:`prepare` returned, or rows of it; a leading axis of
            members, of size 1 where all see the same rows.
        :return: dict from group to log densities in nats, of shape (M, D) + batch.
        """
        fitted = self._standardisation_of(params)
        learned = self.learned(params, prepared)
        found = {}
        for group in self.context.groups:
            t, inputs, features = prepared[group.key]
            inputs = seen(inputs, learned.get(group.key))
            found[group.key] = log_probs_of_group(
                group,
                params[self.params_name(group)],
                t,
                inputs,
                features,
                self.ends(group, fitted),
                fitted["latents"][group.key]["scale"],
                fitted["latents"][group.key]["loc"],
                self.num_components,
                self.flows(group, inputs.shape[-1]),
            )
        return found


def _constant(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _constant(value) for key, value in tree.items()}
    return stop_gradient(tree)
