# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about learned embeddings of the data of amortised guides."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shown


def unknown_summary(summary: object) -> str:
    return f"summary must be 'moments' or 'attention', got {shown(summary)}."


def no_embedding(embedding: object, wanted: str) -> str:
    return (
        f"embedding must be None, 'mlp', {wanted}, or a dict of these by data site, got "
        f"{shown(embedding)}."
    )


def no_embedded_site(name: str, sites: Sequence[str]) -> str:
    return f"embedding names '{name}', which is no data site. The data sites are {list(sites)}."


def whose_embedding(sites: Sequence[str]) -> str:
    return (
        f"embedding is one module, but there are several data sites, {list(sites)}. Say which it "
        f"belongs to: embedding={{'{sites[0]}': module}}."
    )


def embedding_shape(site: str, given: Sequence[int], found: object) -> str:
    return (
        f"The embedding of site '{site}' made {found} of an array of shape {tuple(given)}. It must "
        f"return one vector for each of the {given[0]} elements, of shape ({given[0]}, K)."
    )


def embedding_failed(site: str, given: Sequence[int]) -> str:
    return (
        f"The embedding of site '{site}' failed at an array of shape {tuple(given)}: elements in "
        "front, then the shape of one."
    )


def coupled_embedding(site: str, part: str) -> str:
    return (
        f"The embedding of site '{site}' has a layer, {part}, whose output depends on the rest of "
        "the batch or on chance, so that a posterior would too. Use LayerNorm or GroupNorm "
        "instead, or leave it out."
    )


def module_again() -> str:
    return (
        "The posterior was saved with an embedding of your own, of which the file holds the params "
        "alone. Pass the module that it was made with again: load(path, model, embedding=module)."
    )
