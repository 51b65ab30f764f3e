"""A run directory: what a verb leaves behind, whole or not at all.

It grows as `.NAME.partial` beside its target and takes the target's name when everything is on the disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from asdm_cli.console import note
from asdm_cli.errors import ModelError
from asdm_cli.models.metadata import ORIGIN
from asdm_cli.models.write import MARK, clear_the_way, explained, make_partial, only_writer, partial_path, publish
from asdm_cli.recipe.redact import redact
from asdm_cli.records import Images, Report
from asdm_cli.unet.weights import inside, read_mapping

RECIPE = "recipe.yaml"
REPORT = "report.json"
PAGE = "report.html"
TRAINING = "training"
UNFINISHED = (TRAINING, "calibration", "search")
"""What only an unfinished run goes on from. It goes when everything else is in its place: a kill before that must not
cost days of work."""
SCHEMA = 2
LINKED = (
    "By --link, weights that stay as they are become hard links to the source's files: they take no room of their own, "
    "and whatever is written into one of them is written into the source."
)


_REPORTS = TypeAdapter(list[Report], config=ConfigDict(ser_json_inf_nan="strings", extra="forbid"))


@dataclass(frozen=True)
class Run:
    """The directory that a method writes into. Its path changes when the run is done: keep none that is absolute."""

    path: Path
    link: bool = False
    """Whether weights that stay as they are may be hard links to the source's."""

    def write(self, report: Report) -> Report:
        """Leave the report for programs and for people, without passwords. Its images lie in `path`."""
        from asdm_cli.report.page import render

        report = with_links(report, self.link)
        data = redact(to_json(report))
        (self.path / REPORT).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (self.path / PAGE).write_text(render(from_json(data), self.path), encoding="utf-8")
        return report


def with_links(report: Report, link: bool) -> Report:
    """Says of a plan or a run what its links mean."""
    return replace(report, notes=[*report.notes, LINKED]) if link else report


def to_json(report: Report) -> dict[str, Any]:
    """Plain data, which JSON has words for: figures that it does not know are texts such as "NaN"."""
    return {"schema": SCHEMA, **json.loads(_REPORTS.dump_json([report], exclude_defaults=True))[0]}


def from_json(data: Mapping[str, Any]) -> Report:
    """What `to_json` was given. Raises ModelError if `data` is no report, or of another schema."""
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"{REPORT}: has schema {data.get('schema')!r} where this version reads {SCHEMA}; "
            "show it with the version that wrote it, or run the recipe again"
        )
    try:
        report = _REPORTS.validate_python([{key: value for key, value in data.items() if key != "schema"}])[0]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        raise ModelError(f"{REPORT}: is not a report ({place}: {first['msg']}); run its recipe again") from None
    for folder in (report.images or Images([], {})).folders.values():
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise ModelError(f"{REPORT}: is not a report (images in {folder!r} are outside of its folder)")
    return report


def read(folder: Path) -> Report:
    """The report of a run directory. Raises ModelError, also if something in it leads outside."""
    if not (folder / REPORT).is_file():
        raise ModelError(f"{folder}: is no run directory, as it has no {REPORT}; give one that asdm wrote")
    report = from_json(read_mapping(inside(folder, folder / REPORT)))
    for images in (report.images or Images([], {})).folders.values():
        for image in [folder / images, *(folder / images).glob("*.png")]:
            inside(folder, image)
    return report


@contextmanager
def run_directory(
    target: Path, overwrite: bool, resumable: bool, recipe_yaml: str, link: bool = False
) -> Iterator[Run]:
    """Yield a Run that becomes `target` if the body succeeds, with `recipe_yaml` in it.

    If the body fails, its files go away. Those of a resumable run stay instead, and the next run of the same
    resolved recipe finds them in its `path`; another recipe starts afresh (see `refuse_unfinished`). With
    `overwrite` an older run of that name goes only when the new one has taken its place; what is not from asdm is
    never replaced.
    Under `accelerate launch` only the first process may come here. Raises ModelError if something stands in
    the way, RunError if the disk does or if another process writes there.
    """
    target = target if target.name.strip(".") else target.resolve()  # `.` and `..` have no name to go by
    with explained(target), only_writer(target):
        clear_the_way(target, overwrite)
        partial = partial_path(target)
        try:
            _prepare(target, resumable, recipe_yaml)
            yield Run(partial, link)
            (partial / RECIPE).write_text(recipe_yaml, encoding="utf-8")
            publish(target, overwrite)
        except BaseException:
            _leave(partial, resumable)
            raise
        for name in UNFINISHED:
            shutil.rmtree(target / name, ignore_errors=True)


def refuse_unfinished(target: Path, overwrite: bool, recipe_yaml: str) -> None:
    """ModelError where an interrupted run of another recipe left work beside `target`, which starting afresh would
    lose."""
    partial = partial_path(target)
    left = partial / RECIPE
    if overwrite or not left.is_file() or not _done(partial):
        return
    try:
        before, now = (dict(yaml.safe_load(text)) for text in (left.read_text(encoding="utf-8"), recipe_yaml))
    except (yaml.YAMLError, TypeError, ValueError):  # damaged: nothing can go on from there
        return
    if other := [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]:
        raise ModelError(
            f"{partial}: keeps what an interrupted run of another recipe did ({', '.join(other)} differ). With these "
            f"as they were, the same command goes on from there; --overwrite throws it away; or choose another `out`"
        )


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file() and (folder / REPORT).is_file()


def _prepare(target: Path, resumable: bool, recipe_yaml: str) -> None:
    """Make the partial directory: of what an interrupted run of this recipe left there, or empty."""
    partial = partial_path(target)
    recipe = partial / RECIPE
    if resumable and recipe.is_file() and recipe.read_text(encoding="utf-8") == recipe_yaml:
        note(f"{partial}: going on from what an interrupted run of this recipe left there")
        return
    if resumable and partial.exists():
        note(f"{partial}: left by an interrupted run of another recipe; starting afresh")
    make_partial(target)
    if resumable:  # by this it is known again
        recipe.write_text(recipe_yaml, encoding="utf-8")


def _leave(partial: Path, resumable: bool) -> None:
    """After a failure: keep what a later run can go on from, and nothing else."""
    if not (resumable and _done(partial)):
        shutil.rmtree(partial, ignore_errors=True)
        return
    note(f"{partial}: keeps what was done so far; the same command goes on from there")


def _done(partial: Path) -> bool:
    return any(file.is_file() and file.name not in (MARK, RECIPE, ORIGIN) for file in partial.rglob("*"))
