# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about training with several processes."""

from __future__ import annotations

from collections.abc import Iterable


def equal_noise(ranks: Iterable[int]) -> str:
    return (
        f"ranks {', '.join(map(str, ranks))} hold equal random states: they draw the same noise, "
        "which is then no more than that of one of them. Seed every rank by itself, after the "
        "params are made: pyro.set_rng_seed(seed + rank)."
    )


def local_batch_norm(name: str, layer: str) -> str:
    return (
        f"layer '{name}' ({layer}) normalises by the rank's shard alone, so "
        f"that the ranks' gradients do not average to that of the whole batch. Use LayerNorm or "
        "GroupNorm, or torch.nn.SyncBatchNorm.convert_sync_batchnorm(net) on GPUs."
    )


def local_coupling() -> str:
    return (
        "the critic's samples move each other's logits, as under a mean over the batch, and a rank "
        "sees its own shard alone, so that the ranks' gradients do not average to that of the "
        "whole batch. Use a critic that treats samples one by one, or train in one process."
    )


def coupled_elbo(elbo: str) -> str:
    return (
        f"{elbo} under several ranks: its importance weights are those of all data together, so "
        "that shards of the batch cannot be scored apart. Use Trace_ELBO, or train in one process."
    )


def enumerated_globally(site: str) -> str:
    return (
        f"site '{site}' is enumerated outside of all plates, under several ranks: the sum over its "
        "values is over all data together, so that shards of the batch cannot be scored apart. "
        "Train in one process, or sample the site."
    )


def unrolled() -> str:
    return (
        "unroll=k under several ranks: the unrolled steps of the critic are those of the whole "
        "batch, and a rank sees its own shard alone. Use unroll=0, or train in one process."
    )
