"""Several reports as one: set-ups of one model that draw in one way are one, whichever run found them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asdm_cli.recipe.redact import told_apart
from asdm_cli.records import Images, Record, Report
from asdm_cli.report.run_directory import read

FIRST = ("bench", "eval"), ("inherit", "switch")
"""Verbs whose recipes name set-ups themselves, and those that compare a model with itself: their names and figures come
before the others'."""
NOT_WAYS = ("model", "written", "series", "varied", "reference", "made", "learned")
"""What is said of a set-up, but is nothing of how it draws."""
MOST = 6
"""Names in a note."""
UNSAID = ("patches", "unets", "strength", "image_guidance", "adapters")
"""Of set-ups that draw: what is not said is not there."""


def read_all(runs: Sequence[Path]) -> dict[str, Report]:
    """By the names of the run directories, with their images found from here. Raises ModelError."""
    names = [run.resolve().name for run in runs]
    unique = {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}
    return {name: moved(read(run), run) for name, run in unique.items()}


def moved(report: Report, folder: Path) -> Report:
    """The report with its images, and the models that it made, found below `folder`."""
    setups = {
        name: about | ({"model": told_apart((folder / about["written"]).as_posix())} if "written" in about else {})
        for name, about in report.setups.items()
    }
    report = replace(report, setups=setups)
    if report.images is None:
        return report
    folders = {name: (folder / images).as_posix() for name, images in report.images.folders.items()}
    return replace(report, images=Images(report.images.prompts, folders))


def join(reports: Mapping[str, Report], lead: Sequence[str] = ()) -> Report:
    """One report of all, `reports` by what each is called, those that `lead` first. The first figure of a set-up stays;
    cards that share a name but differ are told apart. Figures that were made under unlike cards are never compared: see
    the main table."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    ranks = {verb: rank for rank, verbs in enumerate(FIRST) for verb in verbs}
    ordered = sorted(reports.items(), key=lambda item: (item[0] not in lead, ranks.get(item[1].verb, len(FIRST))))
    whole = Report(
        " + ".join(dict.fromkeys(each.verb for each in reports.values())), facts={"title": ", ".join(reports)}
    )
    seen: dict[tuple[Any, ...], Record] = {}
    said: dict[str, list[str]] = {}
    for source, report in ordered:
        names = _names(whole, source, report)
        for own, name in names.items():
            whole.setups[name] = report.setups.get(own, {}) | whole.setups.get(name, {})
        cards = {own: _free(own, source, whole.protocols, card) for own, card in report.protocols.items()}
        whole.protocols.update({cards[own]: card for own, card in report.protocols.items()})
        mine = [
            replace(
                each,
                setup=names.get(each.setup, ""),
                against=names.get(each.against, each.against),  # what no set-up is, as the converged pictures
                protocol=cards.get(each.protocol, each.protocol),
            )
            for each in report.records
        ]
        keys = [(each.setup, each.metric, each.of, each.at) for each in mine]
        whole.records.extend(each for key, each in zip(keys, mine, strict=True) if key not in seen)
        made = dict(zip(keys, mine, strict=True))
        twice = [(seen[key], each) for key, each in made.items() if key in seen]
        if unlike := dict.fromkeys(
            one.setup for one, each in twice if one.protocol != each.protocol and one.value != each.value
        ):
            named = [*[*unlike][:MOST], *([f"{len(unlike) - MOST} more"] if len(unlike) > MOST else [])]
            told = f"left out, as another run has them, made in another way: figures of {', '.join(named)}"
            said.setdefault(told, []).append(source)
        seen = made | seen
        whole.timelines.extend(replace(each, title=f"{source}: {each.title}") for each in report.timelines)
        whole.facts.update({f"{source}: {key}": value for key, value in report.facts.items() if key != "title"})
        for note in report.notes:
            said.setdefault(note, []).append(source)
        if report.images:
            before = whole.images or Images(report.images.prompts, {})
            shown = min(before.prompts, report.images.prompts, key=len)
            if before.prompts[: len(shown)] == report.images.prompts[: len(shown)]:
                folders = {names.get(name, name): images for name, images in report.images.folders.items()}
                whole = replace(whole, images=Images(shown, before.folders | folders | before.folders))
            else:
                said.setdefault("pictures are of other prompts, and not here", []).append(source)
    whole.notes.extend(f"{', '.join(sources)}: {note}" for note, sources in said.items())
    return whole


def _names(whole: Report, source: str, report: Report) -> dict[str, str]:
    """What each set-up of a report is called beside those that are there. One whose figures are beside another first
    set-up's is another."""
    found: dict[str, str] = {}
    theirs = _beside(whole, {})
    for own in dict.fromkeys([*report.setups, *(each.setup for each in report.records if each.setup)]):
        about, mine = report.setups.get(own, {}), _beside(report, found).get(own, {})
        taken = set(found.values())
        same = [name for name, other in whole.setups.items() if name not in taken and _same(about, other, own == name)]
        same = [name for name in same if mine.items() <= (mine | theirs.get(name, {})).items()]
        found[own] = next(iter(same), "") or _free(own, source, {**whole.setups, **dict.fromkeys(taken)}, None)
    return found


def _beside(report: Report, names: Mapping[str, str]) -> dict[str, dict[Any, str]]:
    """What each set-up was compared with, by figure."""
    found: dict[str, dict[Any, str]] = {}
    for each in report.records:
        if each.against:
            found.setdefault(each.setup, {})[each.metric, each.of, each.at] = names.get(each.against, each.against)
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any], called_alike: bool) -> bool:
    """The same model, and nothing that both say of how it draws differs; of references, the same name."""
    if one.get("reference") or other.get("reference"):
        return called_alike and bool(one.get("reference")) == bool(other.get("reference"))
    if not one.get("model") or _place(one["model"]) != _place(other.get("model")):
        return False
    both = one.keys() & other.keys() - set(NOT_WAYS)
    return all(one[key] == other[key] for key in both) and (
        "steps" not in both or all(one.get(key) == other.get(key) for key in UNSAID)
    )


def _place(model: Any) -> str:
    """Where a model lies, of a run's with or without `/model`."""
    path = Path(str(model).removesuffix("/model"))
    return str(path.resolve()) if path.exists() else str(path)


def _free(name: str, source: str, taken: Mapping[str, Any], value: Any) -> str:
    """The name, with its source where another thing has it."""
    options: Iterable[str] = (name, f"{name} ({source})", *(f"{name} ({source} {number})" for number in range(2, 99)))
    return next(each for each in options if each not in taken or (value is not None and taken[each] == value))
