"""Several reports as one, and reports for other programs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.recipe.redact import told_apart
from asdm_cli.records import Images, Record, Report, under
from asdm_cli.report import export, join, plots, tables, words
from asdm_cli.report.run_directory import to_json
from asdm_cli.report.tables import everything, main
from tests.report import made


def bench() -> Report:
    setups = {"original": {"model": "pocket", "steps": 25}, "base": {"model": "runs/base/model", "steps": 25}}
    records = [
        Record("original", "unet_ms", 30),
        Record("base", "unet_ms", 20),
        Record("base", "unet_speedup", 1.5, against="original"),
    ]
    return Report("bench", setups, under("cost", records), {"cost": {"device": "cpu"}})


def evaluation() -> Report:
    setups = {
        "plain": {"model": "pocket", "steps": 25},
        "fewer": {"model": "pocket", "steps": 10},
        "base": {"model": "runs/base", "steps": 25, "series": "ours"},
        "real": {"reference": True},
    }
    records = [Record(name, "kid", 0.1 * place) for place, name in enumerate(setups)] + [Record("plain", "unet_ms", 99)]
    images = Images(["fox"], {name: f"images/{name}" for name in setups})
    return Report("eval", setups, under("cost", records), {"cost": {"device": "cuda"}}, images, notes=["few"])


def prune() -> Report:
    setups = {"pocket": {"model": "pocket"}, "base": {"model": "runs/pruned"}}
    return Report(
        "prune", setups, [Record("pocket", "params_m", 9), Record("base", "params_m", 6)], facts={"removed": ["mid"]}
    )


def test_what_several_note_is_said_once() -> None:
    held = {"one": evaluation(), "two": replace(evaluation(), notes=["few", "busy"])}
    assert join.join(held).notes == ["one, two: few", "two: busy"]


def test_each_comparison_has_a_table_of_its_own() -> None:
    def of(suffix: str, date: int) -> Report:
        names = [f"plain {suffix}", f"half {suffix}"]
        records = [Record(name, "image_ms", 50.0) for name in names]
        near = under("quality", [Record(names[1], "psnr_db", 40.0, against=names[0])])
        cards = {"cost": {"date": date}, "quality": {"prompts": "few"}}
        return Report("inherit", {name: {"model": name} for name in names}, under("cost", records) + near, cards)

    whole = join.join({"one": of("1", 1), "two": of("2", 2)})
    assert tables.comparisons(whole) == [["plain 1", "half 1"], ["plain 2", "half 2"]]
    assert export.to_latex(whole).count(r"\begin{tabular}") == 2
    lines = export.to_markdown(whole).splitlines()
    assert [line.split()[1:3] for line in lines if line.startswith("| half")] == [["half", "1"], ["half", "2"]]


def test_pictures_of_the_same_prompts_stand_side_by_side_and_others_are_told() -> None:
    def of(name: str, *prompts: str) -> Report:
        images = Images([*prompts], {name: f"images/{name}"})
        return Report("eval", {name: {"model": name}}, [Record(name, "kid", 0.1)], images=images)

    whole = join.join({"one": of("a", "fox", "owl"), "two": of("b", "fox"), "three": of("c", "apple")})
    assert whole.images == Images(["fox"], {"a": "images/a", "b": "images/b"})
    assert whole.notes == ["three: pictures are of other prompts, and not here"]


def test_figures_that_are_the_same_are_not_told_to_be_made_in_another_way() -> None:
    again = replace(prune(), records=under("cost", prune().records), protocols={"cost": {"date": "today"}})
    assert not join.join({"one": prune(), "two": again}).notes


def test_what_is_near_to_other_pictures_does_not_compete() -> None:
    def of(name: str, steps: int, near: float) -> Report:
        records = under("quality", [Record(name, "psnr_converged_db", near, against="converged")])
        return Report("inherit", {name: {"model": name}}, records, {"quality": {"converged": f"{steps} steps"}})

    whole = join.join({"one": of("a", 50, 22.0), "two": of("b", 400, 30.0)})
    assert {each.against for each in whole.records} == {"converged"}
    (table,) = everything(whole)
    assert not any(cell.best for row in table.rows for cell in row)
    assert table.note.startswith("Not made alike, so not compared: ")


def test_set_ups_of_one_model_that_draw_in_one_way_are_one() -> None:
    whole = join.join({"cut": prune(), "cost": bench(), "worth": evaluation()})
    assert list(whole.setups) == ["original", "base", "fewer", "real", "base (cut)"], "names are those of what measures"
    assert whole.setups["base"]["series"] == "ours"
    table = main(whole)
    assert table is not None
    rows = {row[0].text: [cell.text.strip() for cell in row[1:]] for row in table.rows}
    assert rows["original"] == ["9.00", "30.00", "1.00", "0.0000"], "the first figure of two stays"
    assert rows["base"] == ["–", "20.00", "1.50", "0.2000"]
    assert rows["base (cut)"][0] == "6.00"
    assert {each.protocol for each in whole.records} == {"cost", "cost (worth)", ""}
    assert whole.protocols["cost (worth)"] == {"device": "cuda"}
    assert whole.images is not None
    assert whole.images.folders["original"] == "images/plain"
    assert (whole.facts["cut: removed"], whole.verb) == (["mid"], "prune + bench + eval")
    told = "left out, as another run has them, made in another way: figures of original"
    assert whole.notes == [f"worth: {told}", "worth: few"]


@pytest.mark.parametrize("base", ["runs/cut", "runs/cut/model", "./runs/cut", "{}/runs/cut"])
def test_a_model_that_a_run_made_is_that_which_a_later_recipe_names(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(base.format(tmp_path).removesuffix("/model"))
    (folder / "model").mkdir(parents=True)
    made = Report("prune", {"the result": {"written": "."}}, [Record("the result", "params_m", 6)])
    later = {"base": {"model": told_apart(base.format(tmp_path)), "steps": 25}}
    whole = join.join({"cut": join.moved(made, folder), "cost": Report("bench", later, [Record("base", "unet_ms", 1)])})
    assert {(each.setup, each.metric) for each in whole.records} == {("base", "params_m"), ("base", "unet_ms")}
    elsewhere = {"base": {"model": told_apart("/elsewhere/cut"), "steps": 25}}
    assert len(join.join({"cut": join.moved(made, folder), "cost": Report("bench", elsewhere)}).setups) == 2


def test_a_model_with_a_patch_is_not_the_model_without() -> None:
    plain = {"model": "pocket", "steps": 25}
    patched = Report("inherit", {"the plan": plain | {"patches": ["inherits up.3"]}}, [Record("the plan", "kid", 0.3)])
    whole = join.join({"one": patched, "two": Report("bench", {"pocket": plain}, [Record("pocket", "kid", 0.1)])})
    assert list(whole.setups) == ["pocket", "the plan"]


def test_other_unets_in_turn_are_another_set_up() -> None:
    turns = {"model": "pocket", "steps": 25, "patches": ["served by a, then b"]}
    reports = {
        name: Report("eval", {name: {**turns, "unets": {"b": name}}}, [Record(name, "kid", 0.1)]) for name in ("x", "y")
    }
    assert list(join.join(reports).setups) == ["x", "y"]


def test_speed_ups_over_different_set_ups_are_not_compared() -> None:
    other = Report("bench", {"x": {"model": "x"}, "y": {"model": "y"}}, [Record("y", "unet_speedup", 3.0, against="x")])
    whole = join.join({"one": bench(), "two": other})
    (table,) = [each for each in everything(whole) if len(each.columns) == 3]
    assert [row[2].text for row in table.rows] == ["1.00", "1.50", "1.00", "3.00"]
    assert not any(row[2].best for row in table.rows)


def test_what_compares_models_comes_before_what_compares_a_model_with_itself_unless_that_leads() -> None:
    itself = Report("inherit", {"plain": {"model": "x"}}, [Record("plain", "unet_ms", 5)])
    reports = {"plans": itself, "cost": bench()}
    assert list(join.join(reports).setups) == ["original", "base", "plain"]
    assert list(join.join(reports, ["plans"]).setups) == ["plain", "original", "base"]


def test_reports_are_read_with_their_images_and_one_is_itself(run: Path) -> None:
    (run / "report.json").write_text(json.dumps(to_json(made.compared())))
    reports = join.read_all([run])
    assert list(reports) == ["run"]
    whole = join.join(reports)
    assert whole.images is not None
    assert Path(whole.images.folders["base"]) == run / "images/base"
    assert list(join.read_all([run, run / "../run"])) == [str(run), str(run / "../run")][:2]


@pytest.mark.parametrize("folder", ["../secret", "/etc"])
def test_images_that_leave_the_run_are_refused(run: Path, folder: str) -> None:
    report = Report("eval", images=Images(["a"], {"x": folder}))
    (run / "report.json").write_text(json.dumps(to_json(report)))
    with pytest.raises(ModelError, match="outside of its folder"):
        join.read_all([run])


def test_links_that_leave_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "report.json").write_text(json.dumps(to_json(made.compared())))
    (run / "images/base/000000.png").unlink()
    (run / "images/base/000000.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ModelError, match="leaves"):
        join.read_all([run])


def test_csv_has_every_record_with_all_its_fields() -> None:
    rows = list(csv.DictReader(io.StringIO(export.to_csv(made.compared()))))
    assert len(rows) == len(made.compared().records)
    row = next(row for row in rows if (row["setup"], row["metric"]) == ("real", "kid"))
    assert (float(row["value"]), float(row["low"]), row["interval"], row["protocol"]) == (
        0.001,
        -0.003,
        "95 % bootstrap",
        "quality",
    )


def test_csv_tells_combinations_by_what_they_are_of() -> None:
    about = {"plan a": {"varied": {"level": "a", "every": 2}}, "plain": {}, "plan b": {"varied": {"level": "b"}}}
    report = Report("inherit", about, [Record(name, "psnr_db", 40.0) for name in about])
    rows = [(row["level"], row["every"]) for row in csv.DictReader(io.StringIO(export.to_csv(report)))]
    assert rows == [("a", "2"), ("", ""), ("b", "")]


def test_markdown_and_latex_have_the_main_table() -> None:
    report = Report("bench", {"a|b": {}, "c_d": {}}, [Record("a|b", "unet_ms", 2.0), Record("c_d", "unet_ms", 1.0)])
    assert export.to_markdown(report).split("\n") == [
        "| set-up | UNet call (ms) |",
        "| --- | ---: |",
        "| a\\|b | 2.00 |",
        "| c_d | **1.00** |",
        "",
        tables.BEST,
    ]
    assert r"c\_d & \textbf{1.00} \\" in export.to_latex(report)
    for shape in export.FORMATS.values():
        assert shape(made.odd())
        assert shape(made.trained())
        assert shape(Report("prune"))


def test_what_compares_with_another_set_up_is_not_told_as_of_the_first() -> None:
    """Two evaluations of the same prompts, each with a first model of its own."""
    one = Report("eval", {"original": {"model": "o"}, "base": {"model": "b"}})
    one.records.extend([Record("original", "kid", 0.05, protocol="q"), Record("base", "kid", 0.10, protocol="q")])
    one.records.append(Record("base", "image_speedup", 1.3, against="original", protocol="q"))
    two = Report("eval", {"base": {"model": "b"}, "tiny": {"model": "t"}})
    two.records.extend([Record("base", "kid", 0.10, protocol="q"), Record("tiny", "kid", 0.12, protocol="q")])
    two.records.append(Record("tiny", "image_speedup", 1.2, against="base", protocol="q"))
    for each in (one, two):
        each.protocols["q"] = {"prompts": "p"}
    whole = join.join({"one": one, "two": two})
    title, more = words.headline(whole)
    assert "base: 1.30 times as fast" in title + more
    assert "1.20 times as fast" not in title + more
    (plot,) = plots.scatters(whole)
    assert {point.name for point in plot.points} == {"original", "base"}
    table = main(whole)
    assert table
    assert "Not made alike, so not compared: image speed-up." in table.note
    assert export.to_markdown(whole).endswith(table.note)
    assert f"% {table.note}" in export.to_latex(whole).splitlines()
    two.setups["original"] = {"model": "o"}
    two.records.append(Record("original", "image_speedup", 0.7, against="base", protocol="q"))
    assert tables.whole(join.join({"one": one, "two": two}))["image_speedup"]["original"].value == 1.0


def test_figures_that_give_way_to_others_are_told() -> None:
    reports = {}
    for name, kid in (("drawings", 0.1), ("photos", 0.2)):
        reports[name] = Report("eval", {"a": {"model": "m"}}, [Record("a", "kid", kid, protocol="quality")])
        reports[name].protocols["quality"] = {"prompts": name}
    whole = join.join(reports)
    assert [(each.metric, each.protocol) for each in whole.records] == [("kid", "quality")]
    assert whole.notes == ["photos: left out, as another run has them, made in another way: figures of a"]
    assert join.join(dict.fromkeys("ab", reports["photos"])).notes == []


@pytest.mark.parametrize("key", ["strength", "image_guidance", "unets", "patches"])
def test_set_ups_of_which_one_says_more_are_two(key: str) -> None:
    plain = {"model": "m", "steps": 25}
    one, two = (
        Report("eval", {name: about}, [Record(name, "psnr_db", value)])
        for name, about, value in (("plain", plain, 20.0), ("weak", {**plain, key: [1]}, 35.0))
    )
    assert len(join.join({"one": one, "two": two}).records) == 2


def test_figures_beside_other_first_set_ups_are_two_set_ups() -> None:
    """Ten steps beside fifty, and beside twenty."""
    reports = {}
    for name, steps, value in (("whole", 50, 34.0), ("few", 20, 45.0)):
        setups = {key: {"model": "m", "steps": count} for key, count in (("plain", steps), ("10 steps", 10))}
        reports[name] = Report("inherit", setups, [Record("10 steps", "psnr_db", value, against="plain")])
    found = {(each.setup, each.against): each.value for each in join.join(reports).records}
    assert found == {("10 steps", "plain"): 34.0, ("10 steps (few)", "plain (few)"): 45.0}
    assert len(join.join(reports | {"again": reports["few"]}).records) == 2
