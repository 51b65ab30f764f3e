"""What a report says in words: one title that states the result, and a few lines of the other set-ups."""

from __future__ import annotations

import math
import re

from asdm_cli.compare.pareto import PEERS
from asdm_cli.records import Record, Report
from asdm_cli.report.metrics import better, metric, number, shown, spread, tied
from asdm_cli.report.tables import Columns, Verdict, beside_first, compared, is_reference, leading, named, verdict

LINES = 2
"""Set-ups that are told of below the title."""
SPEEDS = {"image_speedup": "", "denoising_speedup": "all UNet calls ", "unet_speedup": "UNet "}
COSTS = {"image_macs_g": "MACs", "macs_g": "MACs", "params_m": "parameters"}
"""What stands for speed where none was measured."""
PICTURES = {
    Verdict.BETTER: "pictures better",
    Verdict.ALIKE: "pictures as good{told}",
    Verdict.NEAR: "pictures hardly changed",
    Verdict.CHANGED: "pictures changed",
    Verdict.WORSE: "pictures worse",
    Verdict.OTHER: "other pictures",
    Verdict.RUINED: "pictures ruined",
}
UNTRAINED, PATCHING = ("prune", "assemble"), ("inherit", "switch")
"""Verbs that leave a UNet which is to be trained, and those that change no UNet."""


def headline(report: Report) -> tuple[str, str]:
    """What the hero gains and loses beside the first set-up, and what is to be done about it; then of the others."""
    columns, names = beside_first(report), compared(report)
    hero, *others = ranked(report) or [""]
    if hero:
        told = {name: _beside(report, columns, name) for name in [hero, *others]}
        told |= {
            name: words + _learned(report, name) for name, words in told.items() if not verdict(report, columns, name)
        }
        lines = [_line(name, words, _advice(report, columns, name, name == hero)) for name, words in told.items()]
    else:
        lines = [_line(name, _learned(report, name) or _alone(columns, name)) for name in names]
    given = report.facts.get("title") or ", ".join([f"asdm {report.verb}", *names[:LINES]])
    title, *more = [line for line in lines if line] or [given]
    asked, missed, _ = str(report.facts.get("target", "")).partition(": missed")
    if missed:
        title = f"the target of {asked} is missed; {title}"
    return title, "\n".join(f"{line}." for line in more[:LINES])


def ranked(report: Report) -> list[str]:
    """The set-ups beside the first of which something is known. The hero leads: of ours that which the run wrote, or
    else one that has drawn, of which most is known, whose pictures are least hurt, the fastest of these. The nearest in
    speed follow."""
    columns = beside_first(report)
    told = {name: len(_beside(report, columns, name)) for name in compared(report)[1:]}
    known = [name for name, words in told.items() if words]
    ours = [name for name in known if _series(report, name) not in PEERS] or known
    written = [name for name in ours if "written" in report.setups.get(name, {})]
    speed = {name: _speed(columns, name) for name in known}

    def rank(name: str) -> tuple[bool, int, int, float]:
        judged = verdict(report, columns, name)
        return judged is not None, told[name], -judged[0] if judged else 0, speed[name]

    hero = max(written if len(written) == 1 else ours, key=rank, default="")
    return sorted(known, key=lambda name: (name != hero, abs(speed[name] - speed[hero])))


def unbroken(text: str) -> str:
    """Figures keep their units beside them, wherever a line ends."""
    return re.sub(r"(?<=\d) (?=(?:%|dB|ms|MB|GB|M|G|times)(?!\w))|(?<=\d) (?=→)|(?<=→) ", "\u00a0", text)


def _line(name: str, words: list[str], advice: str = "") -> str:
    return f"{name}: {', '.join(words)}{'; ' * bool(advice)}{advice}" if words else ""


def _series(report: Report, name: str) -> str:
    return str(report.setups.get(name, {}).get("series", ""))


def _speed(columns: Columns, name: str) -> float:
    found = [columns[key][name].value for key in SPEEDS if name in columns.get(key, {})]
    found += [-columns[key][name].value for key in COSTS if name in columns.get(key, {})]
    return found[0] if found and math.isfinite(found[0]) else -1e9


def _beside(report: Report, columns: Columns, name: str) -> list[str]:
    """What a set-up gains and loses beside the first one; nothing of references."""
    if is_reference(report, name):
        return []
    first, judged = named(report)[0], verdict(report, columns, name)
    words = _faster(columns, first, name) or _smaller(columns, first, name)[-1 if judged else 0 :]
    if judged:
        state, before, after = judged
        ahead = f"{shown(before)} → " if before else ""
        figure = f"{metric(after.metric).title} {ahead}{shown(after)} {metric(after.metric).unit}".strip()
        few = f", as far as {after.n} tell" if after.n > 1 else ""
        words.append(f"{PICTURES[state].format(told=few)} ({figure})")
    return words


def _faster(columns: Columns, first: str, name: str) -> list[str]:
    """By the first speed that its interval tells from none, or else by the first of all."""
    speeds = {key: columns[key][name] for key in SPEEDS if name in columns.get(key, {})}
    speeds = {key: each for key, each in speeds.items() if math.isfinite(each.value)}
    if not speeds:
        return []
    clear = [key for key, each in speeds.items() if each.low is None or not each.low <= 1 <= (each.high or each.low)]
    key = next(iter(clear or speeds))
    what, each = SPEEDS[key], speeds[key]
    if not clear:
        return [f"{what}as fast as {first}, as far as can be told ({spread(each)} times)"]
    return [f"{what}{shown(each)} times as fast" if each.value >= 1 else f"{what}slower: {shown(each)} times as fast"]


def _smaller(columns: Columns, first: str, name: str) -> list[str]:
    words = dict[str, str]()
    for key, what in COSTS.items():
        before, after = columns.get(key, {}).get(first), columns.get(key, {}).get(name)
        if before and after and math.isfinite(before.value * after.value) and before.value:
            change = 100 * (after.value / before.value - 1)
            if abs(change) >= 0.5:
                unit = metric(key).unit.removesuffix("MACs")
                told = f"{abs(change):.0f} % {'fewer' if change < 0 else 'more'} {what}"
                words.setdefault(what, f"{told} ({shown(before)} → {shown(after)} {unit})")
    return sorted(words.values(), key=lambda text: "parameters" not in text)


def _advice(report: Report, columns: Columns, name: str, hero: bool) -> str:
    """What the reader should do about it: train what nobody trained, or take what is better in both."""
    judged, made = verdict(report, columns, name), report.setups.get(name, {}).get("made", [])
    last = next((verb for verb in reversed(made) if verb not in PATCHING), "")
    hurt = judged is not None and judged[0] >= Verdict.WORSE
    first = report.setups.get(next(iter(named(report)), ""), {}).get("made", [])
    if last in UNTRAINED and made != first and (hurt or (judged is None and report.verb in UNTRAINED)):
        return "distil it"
    if hero and judged and _series(report, name) not in PEERS:
        mine, speed = judged[2], _speed(columns, name)
        for peer in [each for each in compared(report) if _series(report, each) in PEERS]:
            theirs = columns[mine.metric].get(peer)
            if theirs and _speed(columns, peer) >= speed and (alike := tied(mine, theirs)) | better(theirs, mine):
                return f"{peer} {'do' if peer.endswith('steps') else 'does'} {'as well' if alike else 'better'}"
    return ""


def _alone(columns: Columns, name: str) -> list[str]:
    """The figures that matter most of a set-up."""
    mine = {key: {name: column[name]} for key, column in columns.items() if name in column}
    if mine.keys() == {"calls", "full_calls"}:  # a plan on paper
        full, calls = (f"{mine[key][name].value:.0f}" for key in ("full_calls", "calls"))
        return [f"{full} of {calls} UNet calls computed in full, not measured on this model"]
    return [f"{metric(key).title} {shown(mine[key][name])} {metric(key).unit}".strip() for key in leading(mine, 3)]


def _learned(report: Report, name: str) -> list[str]:
    """How the first of its losses went, of samples that it did not learn from where there are such."""
    lines: dict[str, list[Record]] = {}
    for each in report.records:
        if each.setup == name and each.at is not None and metric(each.metric).is_loss and math.isfinite(each.value):
            lines.setdefault(each.metric + each.of, []).append(each)
    found = sorted(
        (line for line in lines.values() if len(line) > 1), key=lambda line: "held_out" not in line[0].metric
    )
    if not found:
        return []
    start, *_, end = found[0]
    part = start.of.rpartition("/")[2]
    title = f"{part} {metric(start.metric).title}".strip()
    steps = f"from step {number(start.at or 0, 0)} to {number(end.at or 0, 0)}"
    return [f"{title} {number(start.value)} → {number(end.value)} {steps}"]
