"""Unfinished work is gone on with only where it was begun with the same files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.origin import claim, claim_or_refuse, made_from, refuse_changes


def later(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def test_work_of_another_origin_goes_away_where_it_is_cheap_and_stays_where_it_is_dear(tmp_path: Path) -> None:
    for begin in (claim, claim_or_refuse):
        folder = tmp_path / begin.__name__
        begin(folder, {"files": ("a", 1), "steps": 2})
        (folder / "work").write_text("done")
        begin(folder, {"files": ("a", 1), "steps": 2})
        assert (folder / "work").exists()
    claim(tmp_path / "claim", {"files": ("a", 2), "steps": 2})
    assert not (tmp_path / "claim/work").exists()
    with pytest.raises(ModelError, match=rf"\(changed since: files\)\. Put those back, .*; or remove {tmp_path}, and"):
        claim_or_refuse(tmp_path / "claim_or_refuse", {"files": ("a", 2), "steps": 2})
    with pytest.raises(ModelError, match="changed since: files, steps, more"):
        claim_or_refuse(tmp_path / "claim_or_refuse", {"more": 1})
    assert (tmp_path / "claim_or_refuse/work").exists()


def test_what_a_recipe_is_made_from(tiny_pipeline: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar", "prompts.txt"):
        (tmp_path / name).write_text(name)
    texts = [str(tiny_pipeline), f"{tmp_path}/*.tar", f"{tmp_path}/prompts.txt", "pocket", "s3://a/b", str(tmp_path)]
    before = made_from(texts)
    assert list(before) == texts[:4]
    assert len(before[texts[0]]) > 10
    refuse_changes(before, made_from(texts))
    for changed, file in ((texts[1], "b.tar"), (texts[2], "prompts.txt")):
        later(tmp_path / file)
        with pytest.raises(RunError, match=r": was changed while this ran") as caught:
            refuse_changes(before, made_from(texts))
        assert str(caught.value).startswith(changed)
        before = made_from(texts)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(RunError):
        refuse_changes(before, made_from(texts))
