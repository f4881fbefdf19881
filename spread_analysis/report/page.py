# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Render a report as one HTML page without external resources; all text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape

import numpy as np

from spread_analysis.critic import CriticReport
from spread_analysis.reference.divergences import class_entropy
from spread_analysis.report import figures
from spread_analysis.report.content import Report
from spread_analysis.report.template import PAGE
from spread_analysis.report.tiles import check, is_lost, number, orbiting, tiles

_LOST = {
    "precision": "samples lie where there are no data",
    "recall": "the model leaves out part of the data, as one does that has dropped modes",
}


def render(report: Report) -> str:
    """The page as text."""
    checked = {name: check(report, logits) for name, logits in report.logits.items()}
    sections = [
        ("curves", "Loss and divergence", _curves(report)),
        ("samples", "Samples against data", _samples(report)),
        ("metrics", "Metrics", _metrics(report)),
        ("calibration", "Calibration of the critic", _calibration(report, checked)),
        ("overlap", "Overlap of supports", _overlap(report, checked)),
        ("posterior", "Posterior", _posterior(report)),
        ("warnings", "Warnings", _warnings(report)),
        ("settings", "Settings, seeds and versions", _settings(report)),
    ]
    words = report.words
    return PAGE.substitute(
        title=escape(report.title),
        subtitle=escape(f"{words.name}: {words.label}"),
        links="".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections),
        cards=_cards(report),
        sections="\n".join(
            f'<section id="{key}"><h2>{escape(name)}</h2>\n{body}</section>'
            for key, name, body in sections
        ),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _picture(png: str, alt: str, caption: str = "", kind: str = "plot") -> str:
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    source = f"data:image/png;base64,{png}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(alt)}">{caption}</figure>\n'


def _row(pictures: Iterable[str], kind: str = "row") -> str:
    return f'<div class="{kind}">{"".join(pictures)}</div>\n'


def _say(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _read(text: str) -> str:
    return f'<p class="read">{escape(text)}</p>\n'


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>\n'


def _alarm(text: str) -> str:
    return f'<p class="alarm">{escape(text)}</p>\n'


def _draw(draw: Callable[[], str], alt: str, caption: str = "", kind: str = "plot") -> str:
    """
    A picture, or the reason why there is none: a picture that cannot be drawn does not stop the
    report.
    """
    try:
        return _picture(draw(), alt, caption, kind)
    except (ValueError, np.linalg.LinAlgError) as error:
        return f'<figure class="missing">{escape(f"{alt}: not drawn, {error}")}</figure>\n'


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    def cell(tag: str, index: int, text: str, last: bool) -> str:
        kind = "number" if index in numbers else "note" if last and tag == "td" else ""
        return f'<{tag} class="{kind}">{escape(text)}</{tag}>'

    lines = []
    for tag, row in [("th", header), *(("td", row) for row in rows)]:
        cells = (
            cell(tag, i, text, i == len(row) - 1 and len(numbers) > 0) for i, text in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div><table>{''.join(lines)}</table></div>\n"


def _cards(report: Report) -> str:
    cards = []
    for tile in tiles(report):
        kind = "" if tile.good is None else " good" if tile.good else " bad"
        value, text = escape(tile.value), escape(tile.text)
        cards.append(f'<div class="card{kind}"><b>{value}</b><span>{text}</span></div>')
    return "".join(cards)


def _curves(report: Report) -> str:
    words, parts = report.words, []
    if words.caution:
        parts.append(
            _alarm(
                f"What {words.name} reports is an {words.caution}: a critic that lags behind can "
                "make it look better than any model is. Do not select models by it; "
                "ais_log_likelihood and held_out_check do not trust this critic."
            )
        )
    if orbiting(report):
        parts.append(
            _alarm(
                "The divergence swings to and fro and does not settle: the players chase each "
                "other, and the model at the last step is one of many. Cures are a regulariser "
                "such as R1, smaller steps, more critic steps, or two_player(ema=...)."
                if report.logits
                else "The divergence swings to and fro and does not settle: take smaller steps."
            )
        )
    if report.losses is not None:
        losses = report.losses
        last = losses[-max(1, len(losses) // 50) :]
        text = (
            f"{words.label}; {len(losses)} steps, mean of the last {len(last)}: "
            f"{number(float(np.mean(last)))}"
        )
        parts.append(_row([_draw(lambda: figures.loss_curve(losses, words), "loss", text)]))
    history = report.history
    if history is not None and len(history):
        nats = "nats" if words.unit == "nats" else words.unit or "no unit"
        panels = [
            (words.label, [n for n in history if n == "divergence"]),
            ("nats", [n for n in history if n.startswith(("critic_divergence", "log_ratio_gap"))]),
            ("share", [n for n in history if n.startswith(("critic_accuracy", "critic_sat"))]),
        ]
        shown = {"loss", *(name for _, names in panels for name in names)}
        rest = [name for name in history if name not in shown]
        if not panels[0][1] and report.losses is None and "loss" in history:
            panels[0] = (words.label, ["loss"])
        panels += [("", [name]) for name in rest]
        pictures = [
            _draw(partial(figures.history_curves, history, names, label), ", ".join(names))
            for label, names in panels
            if names
        ]
        parts.append(
            f"<h3>Looked at during training ({escape(nats)})</h3>\n{_row(pictures, 'row small')}"
        )
    if report.losses is None and (history is None or not len(history)):
        parts.append(
            _missing("No curves: pass losses=..., the loss of every step, or history=History().")
        )
    elif words.is_divergence and words.is_classifier:
        parts.append(
            _read(
                "Good: the divergence falls and settles, while the critic's accuracy stays off "
                f"both {max(words.pi, 1 - words.pi):.0%} (it sees no difference, or has stopped "
                "learning) and 100% (no overlap: the generator gets no gradient). Bad: the "
                "divergence sits at its maximum, or both orbit without end."
            )
        )
    else:
        parts.append(
            _read(
                "Good: it falls and settles. Bad: values that are not finite, or a curve that "
                "still falls at its end (train longer) or jumps (take smaller steps)."
            )
        )
    return "".join(parts)


def _samples(report: Report) -> str:
    data, samples, columns = report.joined()
    parts = [
        _say(
            f"{len(samples)} samples of the model and {len(data)} data, at "
            f"{', '.join(report.data)}. Samples are clean: no spread noise is added to them."
        )
    ]
    bad = int((~np.isfinite(samples).all(1)).sum())
    if bad:
        parts.append(_alarm(f"{bad} of {len(samples)} samples are not finite (NaN or infinite)."))
    site = report.image_site
    if site is not None and report.image_shape is not None:
        shape, real = report.image_shape, report.data[site]
        finite = real[np.isfinite(real)]
        limits = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        limits = limits if limits[0] < limits[1] else (limits[0], limits[0] + 1.0)
        parts.append(
            _row(
                [
                    _draw(
                        lambda: figures.image_grid(real, shape, limits), "data", "Data.", "photo"
                    ),
                    _draw(
                        lambda: figures.image_grid(report.samples[site], shape, limits),
                        "samples of the model",
                        "Samples of the model, not selected.",
                        "photo",
                    ),
                ]
            )
        )
        parts.append(
            _read(
                "Good: one cannot tell the two grids apart. Bad: the same picture again and again "
                "(mode collapse), blur (a likelihood or noise too broad), or speckle."
            )
        )
        return "".join(parts)
    pictures = [_draw(lambda: figures.marginals(data, samples, columns), "marginals")]
    if len(columns) > 1:
        pictures.append(_draw(lambda: figures.scatter(data, samples, columns), "scatter"))
    parts.append(_row(pictures))
    if len(columns) > figures.MAX_MARGINALS:
        parts.append(_say(f"The first {figures.MAX_MARGINALS} of {len(columns)} marginals."))
    parts.append(
        _read(
            "Good: outlines of the model (orange) lie on the data (blue). Bad: data where there "
            "are no samples (dropped modes), samples where there are no data."
        )
    )
    return "".join(parts)


def _metrics(report: Report) -> str:
    rows = [
        (row.name, number(row.model), _perfect(row.perfect), row.best, row.meaning)
        for row in report.metrics
    ]
    header = ("metric", "model", "other data", "ideal", "what it says")
    note = (
        "“Other data” is what half of the data scores against the other half: no model does "
        "better than that but by chance (— where there are too few data to split, and for C2ST, "
        "where it is the ideal). All of these depend on the number of samples; compare "
        "runs at the same number."
    )
    if not any(name == "C2ST" for name, *_ in rows):
        note += " C2ST is left out: too many dimensions for its classifier, or too few samples."
    lost = [
        _alarm(
            f"The model's {row.name} is {number(row.model, 3)}, where other data score "
            f"{number(row.perfect, 3)}: {_LOST[row.name]}."
        )
        for row in report.metrics
        if row.name in _LOST and is_lost(report, row) and not math.isnan(row.model)
    ]
    return "".join(lost) + _table(header, rows, numbers=(1, 2, 3)) + _read(note)


def _perfect(value: float) -> str:
    return "—" if math.isnan(value) else number(value)


def _calibration(report: Report, checked: dict[str, CriticReport | None]) -> str:
    words, parts = report.words, []
    if not report.logits:
        return _missing(report.reasons.get("critic", f"{words.name} has no critic."))
    if not words.is_classifier:
        text = (
            f"The critic of {words.name} is a potential and no classifier: its scores are no "
            "log-ratios, so there is nothing to calibrate."
        )
        return _missing(text)
    for name, logits in report.logits.items():
        if name:
            parts.append(f"<h3>Critic at {escape(name)}</h3>\n")
        found = checked[name]
        if found is None:
            total = len(logits.data) + len(logits.model)
            parts.append(_alarm(f"{logits.num_not_finite} of {total} logits are not finite."))
            continue
        rows = [
            ("accuracy", f"{found.accuracy:.4f}", f"pi = {found.pi:g}"),
            ("cross-entropy", number(found.cross_entropy), "nats"),
            (
                "divergence",
                number(found.divergence),
                f"nats, at most {class_entropy(found.pi):.4f}; what this critic sees of JS_pi",
            ),
            ("calibration error", f"{found.expected_calibration_error:.4f}", "0 is perfect"),
            ("saturated", f"{found.saturated:.4f}", "share of logits of at least 10 in size"),
            (
                "effective samples",
                f"{found.effective_sample_size:.4f}",
                "share; near zero, a few samples stand for all the data",
            ),
        ]
        picture = _draw(partial(figures.calibration, found, words.sides), "calibration curve")
        parts.append(_row([picture, f"<figure>{_table(('', '', ''), rows, (1,))}</figure>"]))
    parts.append(
        _read(
            "Good: points on the diagonal, so that the critic's logits are the log-ratios that the "
            "loss takes them for. Above or below it the divergence is misjudged. On data that the "
            "critic was trained on this looks better than it is: hand in held-out data."
        )
    )
    return "".join(parts)


def _overlap(report: Report, checked: dict[str, CriticReport | None]) -> str:
    words, parts = report.words, []
    if not report.logits:
        return _missing(report.reasons.get("critic", f"{words.name} has no critic."))
    for name, logits in report.logits.items():
        of = f" at {name}" if name else ""
        if logits.num_not_finite:
            parts.append(_missing(f"The critic's logits{of} are not finite."))
            continue
        found = checked[name]
        if found is not None and not found.supports_overlap:
            parts.append(
                _alarm(
                    f"The critic{of} tells {words.sides[0]} from {words.sides[1]} without error "
                    "and without doubt: they have practically no common support, and what it "
                    "reports is no longer a measure of distance. Noise on both sides is the cure."
                )
            )
        what = f"What the critic{of} says of {words.sides[0]} and of {words.sides[1]}"
        parts.append(_row([_draw(partial(figures.overlap, logits, words), "overlap", what)]))
    parts.append(
        _read(
            "Good: two hills that lie over each other in part or wholly. Bad: two hills far apart, "
            "beyond the dotted lines at logits of ±10, where a classifier is certain and its "
            "gradient vanishes."
            if words.is_classifier
            else "Good: two hills over each other. The distance of their means is the loss."
        )
    )
    return "".join(parts)


def _posterior(report: Report) -> str:
    if not report.latents:
        return _missing(report.reasons.get("posterior", "The guide draws no latent."))
    shapes = ", ".join(
        f"{name} ({math.prod(value.shape[1:])})" for name, value in report.latents.items()
    )
    total = sum(math.prod(value.shape[1:]) for value in report.latents.values())
    caption = f"Draws of the guide at {shapes}: {report.latents_of}."
    if total > figures.MAX_LATENTS:
        caption += f" The first {figures.MAX_LATENTS} of {total} dimensions."
    return _row(
        [_draw(lambda: figures.pair_plot(report.latents), "posterior pair plot", caption)]
    ) + _read(
        "Look for what a simple guide cannot have: several modes, bent ridges, hard edges. One "
        "spike where the prior is broad is a guide that has collapsed. For an amortised guide the "
        "posterior of all data together should look like the prior."
    )


def _warnings(report: Report) -> str:
    if not report.warnings:
        return _missing("None.")
    return "".join(_alarm(text) for text in report.warnings)


def _settings(report: Report) -> str:
    parts = []
    for group, rows in report.settings.items():
        if rows:
            table = "".join(
                f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
                for name, value in rows.items()
            )
            parts.append(f"<h3>{escape(group)}</h3>\n<table>{table}</table>\n")
    return "".join(parts)
