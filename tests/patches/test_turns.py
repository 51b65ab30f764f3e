"""UNets put into a pipeline and taken out again: what fits, what is asked of them, where they live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import asdm_cli
from asdm_cli.errors import ModelError, RecipeError
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.patches.unet_schedule import UNetSchedule, alone
from asdm_cli.patches.unet_schedule import switch as attach
from asdm_cli.recipe.patches import read_plan
from tests import tiny
from tests.patches.conftest import Get
from tests.patches.parts import rules, small, twin
from tests.patches.pipes import draw
from tests.patches.pipes import pipe as pipe_of
from tests.patches.test_stretches import call

PLAN = {"preset": "deepcache", "interval": 2}
HALVES = [{"unet": "a", "until": 500}, {"unet": "b"}]


def test_modules_see_all_unets() -> None:
    unet = UNetSchedule({"a": twin(), "b": small()}, alone("a"))
    counts = [sum(each.numel() for each in member.parameters()) for member in unet.unets.values()]
    assert sum(each.numel() for each in unet.parameters()) == sum(counts)
    assert unet.train().unets["b"].training
    assert not unet.eval().unets["b"].training
    assert {each.dtype for each in UNetSchedule({"a": twin()}, alone("a")).to(torch.float64).parameters()} == {
        torch.float64
    }
    assert isinstance(unet.unets["a"], type(small()))


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "names": ({"rules": rules("step", "a 1", "c 2", "b")}, [r"parts\[1\].unet: no UNet is called 'c'"]),
    "null name": ({"unets": {"a": twin(), "b": small(), "reuse": small()}}, ["'reuse' is the null model's name"]),
    "none": ({"unets": {}}, ["none is given", r"parts\[0\]", r"parts\[1\]"]),
    "width": (
        {"unets": {"a": twin(), "b": tiny.unet(tiny.shape("sd15", cross_attention_dim=8))}},
        ["cross_attention_dim must be the same in all UNets, which see the same inputs: a has 16, b has 8"],
    ),
    "channels": (
        {"unets": {"a": twin(), "b": tiny.unet(tiny.shape("sd15", in_channels=9, out_channels=8))}},
        ["in_channels must be the same .* a has 4, b has 9", "out_channels .* a has 4, b has 8"],
    ),
    "additions": (
        {"unets": {"a": twin(), "b": small("xl")}},
        ["addition_embed_type must .* b has 'text_time'", "projection_class_embeddings_input_dim must"],
    ),
    "classes": (
        {"unets": {"a": twin(), "b": tiny.unet(tiny.shape("sd15", class_embed_type="timestep"))}},
        ["class_embed_type must .* a has None, b has 'timestep'"],
    ),
    "format": ({"unets": {"a": twin(), "b": twin().half()}}, ["one number format: a is in float32, b is in float16"]),
    "plan's name": ({"plans": {"aa": read_plan(PLAN)}}, ["plans.aa: no UNet is called 'aa'.*did you mean 'a'"]),
    "plan": (
        {"plans": {"b": read_plan({"rules": [{"nodes": "up.3.2", "schedule": {"mode": "uniform", "interval": 2}}]})}},
        [r"plans.b: rules\[0\].nodes: .*up\.3\.2"],
    ),
    "two plans": (
        {
            "unets": dict.fromkeys("ab", small()),
            "plans": {"a": read_plan(PLAN), "b": read_plan({"rules": []})},
        },
        ["plans.b: is the same UNet as a, which has another plan; load it twice"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_told_at_once(name: str, get: Get) -> None:
    changed, messages = FAULTS[name]
    pipe = get()
    own, kind = pipe.unet, type(pipe)
    given: dict[str, Any] = {"unets": {"a": twin(), "b": small()}, "rules": rules("step", "a 1", "b"), **changed}
    with pytest.raises(ModelError, match=f"(?s){'.*'.join(messages)}") as caught:
        attach(pipe, **given)
    assert len(str(caught.value).splitlines()) >= len(messages)
    assert (pipe.unet, type(pipe)) == (own, kind)


def test_several_faults_come_together(get: Get) -> None:
    unets = {"a": twin(), "b": tiny.unet(tiny.shape("sd15", cross_attention_dim=8)).half()}
    with pytest.raises(ModelError) as caught:
        attach(get(), unets, rules("step", "a 1", "c"), {"d": read_plan(PLAN)})
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "unets:",
        "unets:",
        "parts[1].unet:",
        "plans.d:",
    ]


def test_pipelines_that_cannot_be_switched(get: Get) -> None:
    pipe = get()
    with pytest.raises(ModelError, match="is no diffusers pipeline"):
        attach(object(), {"a": twin()}, alone("a"))  # type: ignore[arg-type]
    with asdm_cli.inherit(pipe, PLAN), pytest.raises(ModelError, match="take its plan off"):
        attach(pipe, {"a": pipe.unet}, alone("a"))
    with attach(pipe, {"a": pipe.unet}, alone("a")), pytest.raises(ModelError, match="switches already"):
        attach(pipe, {"a": twin()}, alone("a"))


def test_a_plan_for_every_unet(get: Get) -> None:
    pipe = get()
    with attach(pipe, {"a": pipe.unet, "b": small()}, rules("step", "a 2", "b")) as handle:
        plain = draw(pipe, 4)
        with asdm_cli.inherit(pipe, PLAN):
            assert list(caches_on(handle.pipe)) == ["a", "b"]
            inherited = draw(pipe, 4)
            with pytest.raises(ModelError, match="UNet 'a', 'b' inherits already; take the earlier plan off"):
                asdm_cli.inherit(pipe, PLAN)
            assert torch.equal(draw(pipe, 4), inherited)
        assert not torch.equal(inherited, plain)
        assert torch.equal(draw(pipe, 4), plain)
        asdm_cli.inherit(pipe, PLAN)
        asdm_cli.remove(pipe)
        assert torch.equal(draw(pipe, 4), plain)
        assert caches_on(pipe).get("unet") is None


def test_one_unet_that_has_a_plan_already_keeps_it(get: Get) -> None:
    pipe = get()
    with attach(pipe, {"a": pipe.unet, "b": small()}, rules("step", "a 2", "b"), {"b": read_plan(PLAN)}) as handle:
        before = draw(pipe, 4)
        with pytest.raises(ModelError, match="UNet 'b' inherits already"):
            asdm_cli.inherit(pipe, PLAN)
        assert list(caches_on(handle.pipe)) == ["b"]
        assert torch.equal(draw(pipe, 4), before)


def test_models_are_found_and_read(tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    other = str(tiny.pipeline(tmp_path / "other", 1))
    plain = asdm_cli.load(other, "cpu").unet
    with asdm_cli.switch(pipe, {"a": pipe.unet, "b": other}, HALVES) as handle:
        read = handle.unet.unets["b"].state_dict()
        assert len(read) > 600
        assert all(torch.equal(read[key], weight) for key, weight in plain.state_dict().items())
        draw(pipe)
    with pytest.raises(ModelError, match="nowhere: no such directory"):
        asdm_cli.switch(pipe, {"a": pipe.unet, "b": str(tmp_path / "nowhere")}, HALVES)
    with pytest.raises(RecipeError, match=r"switch: parts\[0\].until: must be given"):
        asdm_cli.switch(pipe, {"a": pipe.unet}, [{"unet": "a"}, {"unet": "a"}])


def test_what_diffusers_cannot_do_is_refused(get: Get, tmp_path: Path) -> None:
    pipe = get()
    with attach(pipe, {"a": pipe.unet}, alone("a")):
        with pytest.raises(ModelError, match="let `asdm inherit` or `asdm switch` write a model"):
            pipe.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def watch(unet: Any, name: str, moves: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "to", lambda place: moves.append(f"{name} {torch.device(place).type}"))


def test_idle_unets_live_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there: what would be moved is written down."""
    unet = UNetSchedule({"a": twin(), "b": small()}, rules("step", "a 2", "b 4", "reuse 5", "b 6", "a"), offload=True)
    moves: list[str] = []
    for name, each in unet.unets.items():
        watch(each, name, moves, monkeypatch)
    monkeypatch.setattr(unet, "_home", torch.device("cuda"))
    at_call = []
    with torch.no_grad(), unet.generation(8):
        for index in range(8):
            call(unet, index)
            at_call.append(len(moves))
    assert moves == ["a cpu", "b cuda", "b cpu", "a cuda"]
    assert at_call == [0, 0, 2, 2, 2, 2, 4, 4]
    assert unet.device.type == "cuda"


def test_what_waited_waits_on_when_the_turns_are_over(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = get()
    handle = attach(pipe, {"a": pipe.unet, "b": small()}, rules("step", "b"), offload=True)
    moves: list[str] = []
    for name, each in handle.unet.unets.items():
        watch(each, name, moves, monkeypatch)
    monkeypatch.setattr(handle.unet, "_home", torch.device("cuda"))
    with torch.no_grad(), handle.unet.generation(1):
        call(handle.unet, 0)
    assert moves == ["a cpu", "b cuda"]
    handle.remove()
    assert moves[2:] == ["b cpu", "a cuda"]


def test_only_one_unet_arrives_where_the_others_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []
    a, b, c = twin(), small(), twin()
    for name, each in (("b", b), ("c", c)):
        watch(each, name, moves, monkeypatch)
    unet = UNetSchedule({"a": a, "b": b, "c": c, "a again": a}, alone("a"), offload=True)
    assert moves == ["b cpu", "c cpu"]
    unet.half()
    assert moves == ["b cpu", "c cpu"] * 2
    assert {each.dtype for member in (a, c) for each in member.parameters()} == {torch.float16}


def test_an_image_adapter_on_one_unet_alone_is_told() -> None:
    pipe = pipe_of()
    pipe.unet._load_ip_adapter_weights([tiny.image_adapter(pipe.unet)])
    with pytest.raises(ModelError, match="encoder_hid_dim_type"):
        asdm_cli.switch(pipe, {"large": pipe.unet, "small": small()}, [{"unet": "small"}])


def test_an_image_adapter_comes_before_the_turns() -> None:
    pipe = pipe_of()
    with asdm_cli.switch(pipe, {"large": pipe.unet, "small": small()}, [{"unet": "small"}]):
        with pytest.raises(ModelError, match="is about one UNet; call it on each"):
            pipe.unet._load_ip_adapter_weights([])
        assert not hasattr(pipe.unet, "_nothing_of_this_name")
