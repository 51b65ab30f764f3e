"""report.json: the whole report as data, and back without a loss.

JSON has no NaN and no infinity: such a figure is written as `{"value": null, "reason": "not a number"}`.
Pictures are paths relative to the directory that holds the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from asdm_cli.errors import ModelError
from asdm_cli.report.document import (
    LETTERS,
    Bars,
    Cell,
    Column,
    Curves,
    Grid,
    Interval,
    Part,
    Point,
    Report,
    Scatter,
    Section,
    Table,
    Timeline,
)

SCHEMA = 1
MOST_DIGITS = 20
NAME = "report.json"
REASONS = {"not a number": math.nan, "infinity": math.inf, "minus infinity": -math.inf}
KINDS: dict[type[object], str] = {
    Table: "table",
    Scatter: "scatter",
    Curves: "curves",
    Bars: "bars",
    Grid: "grid",
    Timeline: "timeline",
    Section: "section",
}


def to_json(report: Report) -> dict[str, Any]:
    """Values that `json.dumps(..., allow_nan=False)` takes. Pictures should be relative: `part_inside`."""
    return {"schema": SCHEMA, **_encode(report)}


def from_json(data: Mapping[str, Any]) -> Report:
    """The report that `to_json` was given. Raises ModelError if `data` is none, or of another schema."""
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"{NAME}: has schema {data.get('schema')!r} where this version reads {SCHEMA}; "
            "show it with the version that wrote it, or run the recipe again"
        )
    try:
        return _checked(
            Report(
                verb=data["verb"],
                title=data["title"],
                summary=data["summary"],
                parts=[READERS[part["kind"]](part) for part in data["parts"]],
                cards={
                    name: {key: _figure(value) for key, value in card.items()} for name, card in data["cards"].items()
                },
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{NAME}: is not a report ({type(error).__name__}: {error}); run its recipe again") from None


def _checked(report: Report) -> Report:
    """ValueError unless every part holds what its class says; a report may come from elsewhere."""
    for thing in (*report.parts, replace(report, parts=[])):
        held = json.dumps(asdict(thing), default=str)
        TypeAdapter(type(thing)).validate_json(held, strict=True)
    columns = [column for part in report.parts if isinstance(part, Table) for column in part.columns]
    if not all(0 <= column.digits <= MOST_DIGITS for column in columns):
        raise ValueError(f"a column has from 0 to {MOST_DIGITS} digits")
    return report


def part_inside(part: Part, folder: Path) -> Part:
    """The part with its pictures relative to `folder`, where they lie in it; other parts unchanged."""
    if not isinstance(part, Grid):
        return part
    return replace(part, pictures=[[path and _inside(path, folder) for path in row] for row in part.pictures])


def part_at(part: Part, folder: Path) -> Part:
    """The part with the paths of its pictures starting at `folder`; other parts unchanged."""
    if not isinstance(part, Grid):
        return part
    return replace(part, pictures=[[path and folder / path for path in row] for row in part.pictures])


def _inside(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _encode(thing: Any) -> Any:
    if is_dataclass(thing):
        kind = KINDS.get(type(thing))
        return ({"kind": kind} if kind else {}) | {
            field.name: _encode(getattr(thing, field.name)) for field in fields(thing)
        }
    if isinstance(thing, Mapping):
        return {key: _encode(value) for key, value in thing.items()}
    if isinstance(thing, Interval):
        return _encode(thing._asdict())
    if isinstance(thing, (list, tuple)):
        return [_encode(item) for item in thing]
    if isinstance(thing, Path):
        return thing.as_posix()
    if isinstance(thing, float) and not math.isfinite(thing):
        return {"value": None, "reason": _reason(thing)}
    return thing


def _reason(figure: float) -> str:
    if math.isnan(figure):
        return "not a number"
    return "infinity" if figure > 0 else "minus infinity"


def _figure(value: Any) -> Any:
    """A value as it was before `_encode`: a cell, or a card's list of texts."""
    return REASONS[value["reason"]] if isinstance(value, Mapping) else value


def _cell(value: Any) -> Cell | Interval:
    if isinstance(value, Mapping) and "low" in value:
        middle, low, high = (_figure(value[key]) for key in ("value", "low", "high"))
        return Interval(middle, low, high, value["kind"])
    return _figure(value)  # type: ignore[no-any-return]


def _table(data: Mapping[str, Any]) -> Table:
    return Table(
        title=data["title"],
        columns=[Column(**column) for column in data["columns"]],
        rows=[{key: _cell(value) for key, value in row.items()} for row in data["rows"]],
        note=data["note"],
        card=data["card"],
        total=data.get("total", False),  # runs of older versions mark none
    )


def _scatter(data: Mapping[str, Any]) -> Scatter:
    points = [Point(**{key: _figure(value) for key, value in point.items()}) for point in data["points"]]
    return Scatter(data["title"], data["x_title"], data["y_title"], points, data["note"])


def _curves(data: Mapping[str, Any]) -> Curves:
    lines = {name: [(_figure(x), _figure(y)) for x, y in line] for name, line in data["lines"].items()}
    return Curves(data["title"], data["x_title"], data["y_title"], lines, data["log"], data["note"])


def _bars(data: Mapping[str, Any]) -> Bars:
    values = {series: [_figure(value) for value in row] for series, row in data["values"].items()}
    return Bars(data["title"], data["unit"], data["categories"], values, data["note"])


def _grid(data: Mapping[str, Any]) -> Grid:
    pictures = [[_picture(path) for path in row] for row in data["pictures"]]
    return Grid(data["title"], data["columns"], data["rows"], pictures, data["note"])


def _timeline(data: Mapping[str, Any]) -> Timeline:
    letters = data.get("letters", LETTERS)  # runs of older versions have those of nodes only
    return Timeline(data["title"], data["rows"], data["cells"], data["note"], dict(letters))


def _section(data: Mapping[str, Any]) -> Section:
    return Section(data["title"], data["note"], data["verb"], data["folded"])


def _picture(path: str | None) -> Path | None:
    """A report that came from elsewhere may name files in its own folder only."""
    if path is None:
        return None
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"picture {path!r} is outside of its folder")
    return Path(path)


READERS: dict[str, Callable[[Mapping[str, Any]], Part]] = {
    "table": _table,
    "scatter": _scatter,
    "curves": _curves,
    "bars": _bars,
    "grid": _grid,
    "timeline": _timeline,
    "section": _section,
}
