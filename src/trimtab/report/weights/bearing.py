"""What the networks could bear while they trained: quality lost when pruned or rounded, and the critical learning rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.report.parts import Cell, Figure, Section, Table, seeds_sentence
from trimtab.report.traces import line
from trimtab.report.weights.study import Study
from trimtab.studies.bearing import Fall, falls, lost, states_of
from trimtab.studies.summary import BearingTrack

TITLE = "What the network bears while it trains"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def _lost_figure(study: Study, tracks: list[BearingTrack]) -> Figure:
    metric, traces, named = study.metric, [], set()
    for track in tracks:
        for place, (state, values) in enumerate(states_of(track).items()):
            name = f"{track.method}, {state}"
            look = replace(study.looks[track.method], dash=DASHES[place % len(DASHES)])
            own = lost(track, values, metric)
            hover = (
                f"%{{fullData.name}}, seed {track.seed}, epoch %{{x}}<br>lost <b>%{{customdata[0]}}</b>, "
                "learning rate %{customdata[1]}"
            )
            data = [
                ["", ""] if value is None else [metric.change(value, signed=False), f"{rate:.3g}"]
                for value, rate in zip(own, track.learning_rates, strict=True)
            ]
            y = [None if value is None else metric.scale * value for value in own]
            traces.append(
                line(name, look, track.epochs, y, hover, points=True, group=True, showlegend=name not in named, customdata=data)
            )  # fmt: skip
            named.add(name)
    return Figure(
        "bearing",
        f"What pruning or rounding costs the network at each epoch, in {metric.unit} of {metric.word}; one line per run and "
        "state. A line that rises towards the end says that the finished network bears less than it did.",
        {"": traces},
        {
            "xaxis": {"title": {"text": "epoch"}, "zeroline": False},
            "yaxis": {"title": {"text": f"lost, {metric.unit}"}, "zeroline": True},
            "height": 380,
        },
    )


def _rate_figure(study: Study, tracks: list[BearingTrack]) -> Figure | None:
    traces: list[dict[str, Any]] = []
    named: set[str] = set()
    for track in tracks:
        if all(value is None for value in track.critical):
            continue
        look = study.looks[track.method]
        words = {0: "", 1: ", at least", -1: ", at most"}
        hover = f"%{{fullData.name}}, seed {track.seed}, epoch %{{x}}<br><b>%{{y:.3g}}</b>%{{customdata[0]}}"
        data = [[words[one]] for one in track.critical_open]
        traces.append(
            line(
                track.method, look, track.epochs, track.critical, hover, points=True, group=True,
                showlegend=track.method not in named, customdata=data,
            )
        )  # fmt: skip
        thin = replace(look, colour=look.faint(0.5), dash="dot")
        name = f"{track.method}, learning rate"
        traces.append(
            line(name, thin, track.epochs, track.learning_rates, None, width=1.5, showlegend=name not in named)
        )
        named |= {track.method, name}
    if not traces:
        return None
    return Figure(
        "critical-rate",
        "Critical learning rate: the smallest along the epoch's last step that raises the loss of its batch. Dotted: the "
        "learning rate of that step. A step above the line made its own batch worse.",
        {"": traces},
        {
            "xaxis": {"title": {"text": "epoch"}, "zeroline": False},
            "yaxis": {"title": {"text": "learning rate"}, "type": "log"},
            "height": 320,
        },
    )


def _verdict(study: Study, found: list[Fall]) -> str:
    """Whether decay lowered what the networks bear, in one sentence."""
    known = [one for one in found if one.change.low is not None]
    if not known:
        return "With one seed there is no interval, so nothing is said of a fall with the learning rate."
    less = [f"{one.method} at {one.state}" for one in known if (one.change.low or 0) > 0]
    more = [f"{one.method} at {one.state}" for one in known if (one.change.high or 0) < 0]
    parts = [f"less for {', '.join(less)}"] if less else []
    parts += [f"more for {', '.join(more)}"] if more else []
    rest = "" if len(less) + len(more) == len(known) else "; for the others the interval holds zero"
    told = "; ".join(parts) + rest if parts else "neither less nor more that could be told from chance"
    return f"From the highest learning rate to the end the networks came to bear {told} (asked by arXiv 2510.06213 of pruning)."


def bearing_section(study: Study) -> Section | None:
    """Figures, the fall from the highest learning rate to the end, and a verdict; None where nothing was tracked."""
    tracks = [track for method in study.looks for track in study.summary.bearing if track.method == method]
    if not tracks:
        return None
    metric, found = study.metric, falls(tracks, study.metric)
    images = " or ".join(f"{count:,}" for count in sorted({track.images for track in tracks}))
    costs = [track.cost for track in tracks if track.cost is not None]
    sentences = [
        f"Measured on {images} examples of the validation split: pruned once by global magnitude, or with weights in few bits; "
        "BatchNorm re-estimated where there is any. Nothing of the run was changed by it."
        + (f" It took {max(costs):.1%} of training's forward and backward passes, counted." if costs else ""),
    ]
    tables = []
    if found:
        sentences += [
            _verdict(study, found),
            seeds_sentence([one.change.n for one in found], "Numbers after ± are half of"),
        ]
        rows = [
            [
                Cell(one.method, look=study.looks[one.method]), Cell(one.state), Cell(str(one.change.n), one.change.n),
                Cell(metric.number(one.early), round(metric.scale * one.early, 4)),
                Cell(metric.number(one.late), round(metric.scale * one.late, 4)),
                Cell(
                    study.spread(one.change, signed=True), round(metric.scale * one.change.mean, 4),
                    best=one.change.excludes_zero, mark=("harm" if one.change.mean > 0 else "gain") * one.change.excludes_zero,
                ),
            ]
            for one in found
        ]  # fmt: skip
        head = ["method", "state", "seeds", "lost at the highest rate", "lost at the end", "change"]
        caption = (
            f"What a state costs, in {metric.unit} of {metric.word}; bold with an arrow: its interval excludes zero"
        )
        tables = [Table("bearing", caption, head, rows)]
    figures = [_lost_figure(study, tracks), _rate_figure(study, tracks)]
    return Section("bearing", TITLE, sentences, [one for one in figures if one is not None], tables)
