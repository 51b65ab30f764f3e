"""LoRAs in a model's weights: as diffusers fuses them, by hand, on pruned and assembled models, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asdm_cli
from asdm_cli.compare.setup import Session
from asdm_cli.errors import AsdmError
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.load import load_pipeline, load_unet
from asdm_cli.models.metadata import write_patched
from asdm_cli.recipe.typed import read_adapters
from asdm_cli.unet.weights import WEIGHTS
from tests import expanding, families, loras
from tests.compare.setups import whole
from tests.loras import ALL, Lora, low_ranks, weights, written
from tests.turns import pruned

CPU = torch.device("cpu")


def of(model: Path, *adapters: Any) -> ModelDirectory:
    return find(str(model), read_adapters(adapters))


def networks(directory: ModelDirectory) -> dict[str, dict[str, torch.Tensor]]:
    pipe = load_pipeline(directory, CPU, torch.float32)
    found = {name: getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")}
    return {name: part.state_dict() for name, part in found.items() if part is not None}


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.pipeline("sdxl", tmp_path_factory.mktemp("xl") / "sdxl")


@pytest.fixture(scope="module")
def lora(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Lora:
    return written(tmp_path_factory.mktemp("lora") / "fox.safetensors", tiny_pipeline)


WAYS = [
    (name, style)
    for name, styles in {"sd15": ("kohya", "peft", "dotted"), "sdxl": ("kohya-xl", "sgm", "peft")}.items()
    for style in styles
]


@pytest.mark.parametrize(("name", "style"), WAYS)
@pytest.mark.parametrize("which", [loras.ATTENTION, ALL], ids=["attention", "all"])
def test_fused_by_hand(name: str, style: str, which: str, tiny_pipeline: Path, xl: Path, tmp_path: Path) -> None:
    model = {"sd15": tiny_pipeline, "sdxl": xl}[name]
    made = written(tmp_path / "a.safetensors", model, style, low_ranks(model, which))
    found = networks(of(model, f"{made.file}:0.5"))
    changed = 0
    for component, tensors in found.items():
        for key, before in weights(model, component).items():
            wanted = made.changed(component, key, before, 0.5)
            changed += not torch.equal(wanted, before)
            assert torch.allclose(tensors[key], wanted, atol=1e-6), key
    assert changed == len(made.low) > 100


def test_names_of_attention_before_peft(tiny_pipeline: Path, tmp_path: Path) -> None:
    low = low_ranks(tiny_pipeline, r"attn\d\.to_|self_attn\.")
    styles = ("dotted", "processors", "transformers 5")
    made = [written(tmp_path / f"{style}.safetensors", tiny_pipeline, style, low) for style in styles]
    wanted, *others = (networks(of(tiny_pipeline, str(each.file))) for each in made)
    for other, (component, tensors) in product(others, wanted.items()):
        assert all(torch.equal(each, other[component][key]) for key, each in tensors.items())


def test_as_peft_itself_saves_it(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Its strength stands beside it, and without that nothing is guessed."""
    low = {key: halves for key, halves in low_ranks(tiny_pipeline).items() if key[0] == "unet"}
    one = written(tmp_path / "one.safetensors", tiny_pipeline, "peft", low)
    held = {f"base_model.model.{name.removeprefix('unet.')}": each for name, each in load_file(one.file).items()}
    save_file(held, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(AsdmError, match=r"with its strength in adapter_config\.json; fetch that too"):
        of(tiny_pipeline, str(tmp_path / "adapter_model.safetensors"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": loras.RANK, "lora_alpha": loras.ALPHA}))
    found, wanted = (
        networks(of(tiny_pipeline, str(file)))["unet"] for file in (tmp_path / "adapter_model.safetensors", one.file)
    )
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


@pytest.mark.parametrize(("name", "style"), [*WAYS, ("sd15", "processors")])
def test_fused_as_diffusers_does_it(name: str, style: str, tiny_pipeline: Path, xl: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="what diffusers fuses with: pip install peft")
    model = {"sd15": tiny_pipeline, "sdxl": xl}[name]
    which = r"attn\d\.to_|self_attn\." if style == "processors" else loras.ATTENTION
    made = written(tmp_path / "a.safetensors", model, style, low_ranks(model, which))
    theirs = load_pipeline(find(str(model)), CPU, torch.float32)
    theirs.load_lora_weights(made.file)
    theirs.fuse_lora(lora_scale=0.7)
    theirs.unload_lora_weights()
    for component, tensors in networks(of(model, f"{made.file}:0.7")).items():
        wanted = getattr(theirs, component).state_dict()
        assert tensors.keys() == wanted.keys()
        for key, tensor in tensors.items():
            assert torch.allclose(tensor, wanted[key], atol=2e-6), key


def fused(model: Path, folder: Path, *adapters: Any) -> Path:
    """The model with its LoRAs, written."""
    write_patched(of(model, *adapters), {}, (), folder, "inherit")
    return folder


def same(one: ModelDirectory, other: ModelDirectory) -> bool:
    first, second = networks(one), networks(other)
    return all(torch.equal(each, second[part][key]) for part, tensors in first.items() for key, each in tensors.items())


def small_on_base(original: Path, folder: Path) -> Path:
    return pruned(pruned(original, folder / "base", "base"), folder / "small", "mid")


def of_both(original: Path, folder: Path) -> Path:
    donors = {"original": str(original), "base": str(pruned(original, folder / "base", "base"))}
    levels = ["base", "original", "base", "original"]
    return expanding.done(folder, {"verb": "assemble", "donors": donors, "levels": levels, "mid": "none"}) / "model"


def one_layer_twice(original: Path, folder: Path) -> Path:
    base = pruned(original, folder / "base", "base")
    blocks: dict[str, Any] = {f"{side}.{index}": "base" for side in ("down", "up") for index in range(4)} | {
        "mid": "base"
    }
    blocks["up.2"] = ["base/up.2.0", "original/up.2.2", "base/up.2.sampler"]
    donors = {"original": str(original), "base": str(base)}
    return expanding.done(folder, {"verb": "assemble", "donors": donors, "blocks": blocks}) / "model"


MADE: dict[str, Callable[[Path, Path], Path]] = {
    "base": lambda original, folder: pruned(original, folder / "base", "base"),
    "tiny": lambda original, folder: pruned(original, folder / "tiny", "tiny"),
    "without attention": lambda original, folder: pruned(original, folder / "bare", "down.0.*.attn"),
    "twice": small_on_base,
    "assembled": of_both,
    "assembled of layers": one_layer_twice,
}


@pytest.mark.parametrize("made", MADE)
def test_first_the_lora_then_the_knife_is_first_the_knife_then_the_lora(
    made: str, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = written(tmp_path / "a.safetensors", tiny_pipeline, low=low_ranks(tiny_pipeline, ALL))
    make = MADE[made]
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    knife_last = make(fused(tiny_pipeline, tmp_path / "tiny", f"{lora.file}:0.8"), tmp_path / "one")
    student = make(tiny_pipeline, tmp_path / "other")
    capsys.readouterr()
    knife_first = of(student, f"{lora.file}:0.8")
    assert same(find(str(knife_last)), knife_first)
    assert not same(find(str(student)), knife_first)
    (told,) = knife_first.adapters
    assert f"; {gone(student, tiny_pipeline, lora)} more are of what {knife_first.name} has not" in told.told
    assert told.told in " ".join(capsys.readouterr().err.split())


def gone(student: Path, original: Path, lora: Lora) -> int:
    """Of the weights that a LoRA changes, those whose bytes are not in the student."""
    kept = {bytes(each.numpy()) for each in weights(student, "unet").values()}
    held = weights(original, "unet")
    return sum(bytes(held[name].numpy()) not in kept for component, name in lora.low if component == "unet")


def test_models_of_one_name_are_told_apart_by_their_generation(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Both answers that are offered are taken, and mean something else."""
    original = Path(shutil.copytree(tiny_pipeline, tmp_path / "from/run"))
    student = expanding.done(tmp_path / "to", {"verb": "prune", "model": str(original), "remove": "base"})
    made = written(tmp_path / "a.safetensors", student, low=low_ranks(student, r"up_blocks.*attn\d\.to_"))
    with pytest.raises(AsdmError, match=r"say `of: run` or `of: run~1` \(typed: FILE:SCALE:run~1\)"):
        of(student, str(made.file))
    found = [of(student, f"{made.file}:1:{name}").adapters[0].told for name in ("run", "run~1")]
    assert found[0] != found[1]
    with pytest.raises(AsdmError, match="say one of run, run~1"):
        of(student, f"{made.file}:1:run~2")


def test_a_lora_that_fits_two_models_wants_to_be_told(tiny_pipeline: Path, tiny_base: Path, tmp_path: Path) -> None:
    """That of the student itself has a place for everything in the original, where it is another one."""
    low = low_ranks(tiny_base, r"up_blocks.*attn\d\.to_")
    made = written(tmp_path / "a.safetensors", tiny_base, low=low)
    with pytest.raises(AsdmError, match=r"say `of: run` or `of: tiny` \(typed: FILE:SCALE:tiny\)"):
        of(tiny_base, str(made.file))
    assert "may be of several models" not in of(tiny_pipeline, str(made.file)).adapters[0].told
    own, original = (load_unet(of(tiny_base, f"{made.file}:1:{name}"), CPU, torch.float32) for name in ("run", "tiny"))
    before = weights(tiny_base, "unet")
    for name, tensor in own.state_dict().items():
        assert torch.allclose(tensor, made.changed("unet", name, before[name]), atol=1e-6)
    differ = {name for name, tensor in original.state_dict().items() if not torch.equal(tensor, before[name])}
    assert differ < {name for _, name in low}
    assert differ


Make = Callable[[Lora, Path], Path]


def spoilt(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    def make(lora: Lora, folder: Path) -> Path:
        tensors = load_file(lora.file)
        change(tensors)
        save_file(tensors, folder / "a.safetensors")
        return folder / "a.safetensors"

    return make


def more(**tensors: torch.Tensor) -> Make:
    return spoilt(lambda held: held.update(tensors))


def text(name: str) -> Make:
    def make(_: Lora, folder: Path) -> Path:
        (folder / name).write_text("x" * 20)
        return folder / name

    return make


def headed(_: Lora, folder: Path, said: str) -> Path:
    """Of peft, with these settings."""
    tensors = {f"unet.mid_block.attentions.0.proj_in.lora_{half}.weight": torch.zeros(1, 1) for half in "AB"}
    save_file(tensors, folder / "a.safetensors", {"format": "pt", "lora_adapter_metadata": said})
    return folder / "a.safetensors"


FIRST, NONE = "lora_unet_down_blocks_0_attentions_0_proj_in", torch.zeros(1, 1)
STRANGER = more(**{f"lora_unet_x.lora_{half}.weight": torch.zeros(1, 1) for half in ("up", "down")})
WRONG: dict[str, tuple[Make, str]] = {
    "missing": (lambda _, folder: folder / "no.safetensors", "no such file; give a LoRA's .safetensors file"),
    "folder": (lambda lora, _: lora.file.parent, r"is a directory; give the LoRA's file, as .*fox\.safetensors"),
    "pickle": (text("a.ckpt"), r"is a pickle.*make a safetensors file of the LoRA in it.*a\.ckpt .*a\.safetensors$"),
    "no safetensors": (text("a.safetensors"), "is not a whole safetensors file"),
    "a model": (lambda *_: Path("MODEL"), r"holds no LoRA \(.*\); a whole model is given as `model`"),
    "nothing": (spoilt(lambda held: held.clear()), "holds no LoRA"),
    "half": (spoilt(lambda held: held.pop(f"{FIRST}.lora_up.weight")), f"lacks {FIRST}.lora_up.weight; fetch"),
    "something else": (more(bias=NONE), "holds bias, which is no part of a LoRA"),
    "DoRA": (more(**{f"{FIRST}.dora_scale": NONE}), r"holds a DoRA .*only plain LoRAs"),
    "LoHa": (more(**{f"{FIRST}.hada_w1_a": NONE}), "holds a LoHa"),
    "NaN": (more(**{f"{FIRST}.lora_up.weight": NONE / 0}), f"{FIRST}.lora_up.weight holds values that are no finite"),
    "alpha": (more(**{f"{FIRST}.alpha": torch.zeros(2)}), f"{FIRST}: its alpha is no number"),
    "header": (lambda lora, folder: headed(lora, folder, "[1"), "lora_adapter_metadata in its header cannot be read"),
    "header's alpha": (
        lambda lora, folder: headed(lora, folder, '{"unet.lora_alpha": "x", "unet.alpha_pattern": {"(": 1}}'),
        "its alpha is no number",
    ),
    "ranks": (more(**{f"{FIRST}.lora_up.weight": torch.zeros(8, 2)}), f"{FIRST} is of .*, which multiply to no weight"),
    "stranger": (STRANGER, "is no LoRA of tiny: it has no lora_unet_x; give one that was trained on this model, or on"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_lora_of_this_model(kind: str, lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    file = make(lora, tmp_path)
    file = tiny_pipeline / "unet" / WEIGHTS if file == Path("MODEL") else file
    with pytest.raises(AsdmError, match=message) as told:
        of(tiny_pipeline, str(lora.file), str(file))
    assert str(told.value).startswith(f"adapters[1]: {file}: ")


def test_a_lora_of_another_family(lora: Lora, xl: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AsdmError,
        match=r"is no LoRA of sdxl: lora_te_.* is for 32 × 16 weights, and it has 32 × 6 there; .* more; give",
    ):
        of(xl, str(lora.file))
    wider = {key: (down.repeat(1, 2, *[1] * (down.dim() - 2)), up) for key, (down, up) in lora.low.items()}
    file = written(tmp_path / "wide.safetensors", tiny_pipeline, low=wider).file
    with pytest.raises(AsdmError, match=r"is for 32 × 32 weights, and it has 32 × 16 there"):
        of(tiny_pipeline, str(file))


def test_of_a_model_that_it_was_not_made_from(lora: Lora, tiny_base: Path) -> None:
    with pytest.raises(AsdmError, match="run was not made from 'fox'; say one of run, tiny"):
        of(tiny_base, {"path": str(lora.file), "of": "fox"})


def test_convolutions_of_experts_are_no_place_for_one(tiny_pipeline: Path, tiny_experts: Path, tmp_path: Path) -> None:
    attention = written(tmp_path / "a.safetensors", tiny_pipeline)
    load_unet(of(tiny_experts, str(attention.file)), CPU, torch.float32)
    every = written(tmp_path / "b.safetensors", tiny_pipeline, low=low_ranks(tiny_pipeline, ALL))
    with pytest.raises(AsdmError, match="changes a convolution that has several experts here; fuse it before"):
        of(tiny_experts, str(every.file))


def test_a_bare_unet_leaves_out_what_is_of_text_encoders(lora: Lora, tiny_pipeline: Path) -> None:
    bare = of(tiny_pipeline / "unet", str(lora.file))
    text = sum(component != "unet" for component, _ in lora.low)
    assert f"; {text} more are of what unet has not" in bare.adapters[0].told


def test_set_ups_that_differ_in_adapters_share_nothing(lora: Lora, tiny_pipeline: Path) -> None:
    plain = whole(tiny_pipeline, "plain")
    half, full, again = (
        replace(plain, name=name, model=of(tiny_pipeline, f"{lora.file}:{scale}"))
        for name, scale in (("half", 0.5), ("full", 1), ("again", 1))
    )
    assert len({each.body for each in (plain, half, full)}) == 3
    assert full.body == again.body
    assert len({str(each.origin()) for each in (plain, half, full)}) == 3
    session = Session(CPU, torch.float32)
    unets = [session.unet(each.model) for each in (plain, half, full) if each.model]
    key = "mid_block.attentions.0.proj_in.weight"
    low, mid, high = (unet.state_dict()[key] for unet in unets)
    assert torch.allclose(mid - low, (high - low) / 2, atol=1e-6)
    assert not torch.equal(low, mid)
    assert session.pipeline(full.model).unet is not session.pipeline(plain.model).unet  # type: ignore[arg-type]


def test_written_with_links_it_leaves_the_source_alone(lora: Lora, tiny_pipeline: Path, tmp_path: Path) -> None:
    before = (tiny_pipeline / "unet" / WEIGHTS).read_bytes()
    directory = of(tiny_pipeline, str(lora.file))
    write_patched(directory, {}, (), tmp_path / "model", "inherit", link=True)
    assert (tiny_pipeline / "unet" / WEIGHTS).read_bytes() == before
    assert same(find(str(tmp_path / "model")), directory)
    assert directory.adapters[0].told in (tmp_path / "model" / "asdm.json").read_text()


def test_in_python(lora: Lora, tiny_pipeline: Path) -> None:
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu", adapters=[{"path": str(lora.file), "scale": 0.5}])
    key = "mid_block.attentions.0.proj_in.weight"
    wanted = lora.changed("unet", key, weights(tiny_pipeline, "unet")[key], 0.5)
    assert torch.allclose(pipe.unet.state_dict()[key], wanted, atol=1e-6)
    with pytest.raises(AsdmError, match=r"scael: unknown key"):
        asdm_cli.load(str(tiny_pipeline), adapters=[{"path": str(lora.file), "scael": 0.5}])
