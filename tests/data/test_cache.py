"""The cache holds what VAE and text encoder compute, is keyed by all that it is made of, and survives a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from asdm_cli.data.cache import Build, Share
from asdm_cli.data.cache_key import Wanted, cache_state
from asdm_cli.data.cached import CachedSamples
from asdm_cli.data.encoder import Encoder, check_resolution
from asdm_cli.data.shards import find_shards
from asdm_cli.data.uncached import EncodedEachTime
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import find
from asdm_cli.models.write import only_writer
from tests import tiny
from tests.data import tars
from tests.hardening import kinds

SIDE = 32
CPU = torch.device("cpu")
RUBBISH = (*kinds.OTHERS, *kinds.HUGE)


class Counting(Encoder):
    """Counts the pictures that it encodes, and can be killed at one."""

    seen = 0
    dies_at = -1

    def latents(self, pictures: Sequence[numpy.ndarray], flipped: bool = False) -> torch.Tensor:
        if self.seen == self.dies_at:
            raise KeyboardInterrupt
        self.seen += len(pictures)
        return super().latents(pictures, flipped)


@pytest.fixture(scope="module")
def encoder(tiny_pipeline: Path) -> Encoder:
    return Encoder.load(find(str(tiny_pipeline)), SIDE, CPU, torch.float32)


@pytest.fixture
def counting(encoder: Encoder) -> Counting:
    return Counting(encoder.pipe, SIDE)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards of 5, 1 and 4 samples."""
    for name, numbers in (("0", range(5)), ("1", [5]), ("2", range(6, 10))):
        tars.write(tmp_path / "data" / f"{name}.tar", tars.samples(*numbers))
    return f"{tmp_path}/data/{{0..2}}.tar"


@pytest.fixture
def build(tiny_pipeline: Path, shards: str, tmp_path: Path, encoder: Encoder) -> Build:
    wanted = Wanted(find_shards([shards]), find(str(tiny_pipeline)), SIDE, flip=True)
    return Build(wanted, tmp_path / "cache", lambda: encoder, batch=2)


def pixels(*numbers: int) -> list[numpy.ndarray]:
    return [numpy.asarray(Image.open(io.BytesIO(tars.picture(number)))) for number in numbers]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_are_what_the_parts_compute(build: Build, encoder: Encoder) -> None:
    samples = CachedSamples(build.run())
    assert (samples.size, samples.faults.total()) == (10, 0)
    assert samples.captions == [f"picture {number}" for number in range(10)]
    rows = [9, 0, 5, 5, 6, 4]
    turned = torch.tensor([True, False, True, False, False, True])
    batch = samples.read(torch.tensor(rows), turned)
    with torch.no_grad():
        pictures = torch.from_numpy(numpy.stack(pixels(*rows))).permute(0, 3, 1, 2).float() / 127.5 - 1
        pictures[turned] = pictures[turned].flip(-1)
        vae = encoder.pipe.vae
        latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        words = encoder.pipe.tokenizer(
            [f"picture {row}" for row in rows], padding="max_length", max_length=tiny.TOKENS, return_tensors="pt"
        )
        text = encoder.pipe.text_encoder(words.input_ids).last_hidden_state
    assert batch.latents.dtype == batch.condition.text.dtype == torch.float32
    torch.testing.assert_close(batch.latents, latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(batch.condition.text, text, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(batch.latents[2], batch.latents[3], atol=1e-2), "a mirrored picture is another"
    assert batch.condition.added == {}
    assert samples.empty.text.shape == (1, tiny.TOKENS, tiny.WIDTH)
    torch.testing.assert_close(samples.empty.text, encoder.condition([""]).text, atol=2e-3, rtol=1e-3)


def test_reading_is_the_same_to_the_bit(build: Build) -> None:
    folder, rows = build.run(), torch.tensor([7, 1, 5])
    first, second = (CachedSamples(folder).read(rows, torch.tensor([True, False, True])) for _ in range(2))
    single = [CachedSamples(folder).read(rows[i : i + 1]) for i in range(3)]
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.latents[1], single[1].latents[0])
    assert torch.equal(first.condition.text, torch.cat([each.condition.text for each in single]))


def test_rows_that_are_not_there(build: Build) -> None:
    samples = CachedSamples(build.run())
    for row in (-1, 10):
        with pytest.raises(IndexError, match="10 samples"):
            samples.read(torch.tensor([row]))


def test_what_is_read_takes_part_in_training(build: Build, encoder: Encoder, tmp_path: Path) -> None:
    wanted = replace(build.wanted, model=None)
    index = Build(wanted, tmp_path / "index", None).run()
    for samples in (CachedSamples(build.run()), EncodedEachTime(index, wanted.shards, encoder)):
        weight = torch.ones(1, requires_grad=True)
        for value in (samples.read(torch.tensor([0])).latents, samples.empty.text):
            (weight * value).square().sum().backward()
        assert weight.grad > 0


def test_uncached_equals_cached(build: Build, encoder: Encoder, tmp_path: Path) -> None:
    wanted = replace(build.wanted, model=None)
    index = Build(wanted, tmp_path / "index", None, batch=2)
    each_time = EncodedEachTime(index.run(), wanted.shards, encoder)
    cached = CachedSamples(build.run())
    rows, turned = torch.tensor([8, 0, 5, 2]), torch.tensor([False, True, True, False])
    left, right = cached.read(rows, turned), each_time.read(rows, turned)
    assert each_time.size == cached.size == 10
    assert each_time.captions == cached.captions
    torch.testing.assert_close(left.latents, right.latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(left.condition.text, right.condition.text, atol=2e-3, rtol=1e-3)
    assert not list((tmp_path / "index").rglob("*.safetensors"))


def test_uncached_from_a_store(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/shelf/a.tar", tars.tar_bytes(tars.samples(0, 1, 2)))
    try:
        shards = find_shards(["memory://shelf/a.tar"])
        index = Build(Wanted(shards, None, SIDE), tmp_path / "index", None).run()
        batch = EncodedEachTime(index, shards, encoder).read(torch.tensor([2, 0]))
        torch.testing.assert_close(batch.latents, encoder.latents(pixels(2, 0)))
        tars.break_off(monkeypatch)
        with pytest.raises(RunError, match=r"a.tar by memory .*: cannot be read .*PayloadError: 25600 of 51200"):
            EncodedEachTime(index, shards, encoder).read(torch.tensor([2, 0]))
    finally:
        store.rm("/shelf", recursive=True)


def test_uncached_needs_plain_tars(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="train from a cache, or unpack"):
        EncodedEachTime(tmp_path, find_shards(["pocket"]), encoder)


def test_uncached_tells_that_a_shard_changed(build: Build, encoder: Encoder, tmp_path: Path) -> None:
    wanted = replace(build.wanted, model=None)
    samples = EncodedEachTime(Build(wanted, tmp_path / "index", None).run(), wanted.shards, encoder)
    Path(wanted.shards[0].url).write_bytes(bytes(2000))
    with pytest.raises(RunError, match="did it change"):
        samples.read(torch.tensor([0]))


def sdxl(folder: Path) -> Path:
    """Two text encoders of half the UNet's text width, the second with the pooled projection."""
    tiny.pipeline(folder)
    torch.manual_seed(1)
    words = tiny.tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(**{**tiny._text(words), "hidden_size": 8, "projection_dim": 8})
    from diffusers import AutoencoderKL, DDIMScheduler

    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=words,
        tokenizer_2=words,
        unet=tiny.unet(tiny.shape("sdxl")),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        add_watermarker=False,
    )
    shutil.rmtree(folder)
    pipe.save_pretrained(folder)
    return folder


def test_sdxl(shards: str, tmp_path: Path) -> None:
    model = find(str(sdxl(tmp_path / "sdxl")))
    encoder = Encoder.load(model, SIDE, CPU, torch.float32)
    samples = CachedSamples(
        Build(Wanted(find_shards([shards]), model, SIDE), tmp_path / "cache", lambda: encoder).run()
    )
    batch = samples.read(torch.tensor([3, 8]))
    wanted = encoder.pipe.encode_prompt(["picture 3", "picture 8"], do_classifier_free_guidance=False)
    torch.testing.assert_close(batch.condition.text, wanted[0], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(batch.condition.added["text_embeds"], wanted[2], atol=5e-3, rtol=1e-3)
    assert batch.condition.text.shape == (2, tiny.TOKENS, tiny.WIDTH)
    assert batch.condition.added["time_ids"].tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 2
    assert batch.condition.added["time_ids"].dtype == torch.float32
    assert not samples.empty.text.any(), "SDXL's missing prompt is zeros"
    assert not samples.empty.added["text_embeds"].any()


def test_a_vae_with_shift_or_means(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoder.latents(pixels(0)) / encoder.vae.config.scaling_factor

    class Config(dict):
        __getattr__ = dict.__getitem__

    for given, expected in (
        ({"scaling_factor": 2.0, "shift_factor": 0.5}, (plain - 0.5) * 2),
        ({"scaling_factor": 2.0, "latents_mean": [1.0] * 4, "latents_std": [4.0] * 4}, (plain - 1) / 2),
    ):
        monkeypatch.setattr(type(encoder.vae), "config", Config(given))
        torch.testing.assert_close(encoder.latents(pixels(0)), expected)


def test_resolution_fits_the_vae(tiny_pipeline: Path) -> None:
    model = find(str(tiny_pipeline))
    check_resolution(model, 32)
    for wrong in (0, -4, 30, 3):
        with pytest.raises(ModelError, match=r"multiple of 4; take \d"):
            check_resolution(model, wrong)


def changed_weights(folder: Path) -> None:
    """Other values under the same header."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    header = file.read_bytes()[:200]
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    assert file.read_bytes()[:200] == header


def changed_text(file: Path) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        text = (model / file).read_text()
        (model / file).write_text(f"{text}\n")

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "vae weights": lambda model: changed_weights(model / "vae"),
    "text encoder weights": lambda model: changed_weights(model / "text_encoder"),
    "vae config": changed_text(Path("vae/config.json")),
    "text encoder config": changed_text(Path("text_encoder/config.json")),
    "vocabulary": changed_text(Path("tokenizer/tokenizer_config.json")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_another_key(change: str, tiny_pipeline: Path, shards: str, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_pipeline, copy)

    def key() -> str:
        return Wanted(find_shards([shards]), find(str(copy)), SIDE).key

    before = key()
    assert key() == before == Wanted(find_shards([shards]), find(str(tiny_pipeline)), SIDE).key
    changed_weights(copy / "unet")
    assert key() == before, "the UNet has no part in it"
    CHANGES[change](copy)
    assert key() != before


def test_other_settings_are_another_key(build: Build, shards: str, tmp_path: Path, monkeypatch: Any) -> None:
    wanted = build.wanted
    others = [
        replace(wanted, resolution=64),
        replace(wanted, flip=False),
        replace(wanted, dtype=torch.bfloat16),
        replace(wanted, model=None),
        replace(wanted, shards=wanted.shards[:2]),
        replace(wanted, shards=wanted.shards[::-1]),
    ]
    os.utime(tmp_path / "data" / "1.tar", ns=(5, 5))
    others.append(replace(wanted, shards=find_shards([shards])))
    keys = {each.key for each in others} | {wanted.key}
    for constant in ("CACHE_FORMAT", "DATA_FORMAT", "CROP"):
        with monkeypatch.context() as patch:
            patch.setattr(f"asdm_cli.data.cache_key.{constant}", "other")
            keys.add(replace(wanted).key)
    assert len(keys) == 11


def test_state_and_use_of_a_complete_cache(build: Build, counting: Counting) -> None:
    assert str(cache_state(build.wanted, build.root)).endswith("to be made")
    replace(build, load=lambda: counting).run()
    state = cache_state(build.wanted, build.root)
    assert (state.complete, state.samples, state.faults, state.shards_done) == (True, 10, 0, 3)
    assert counting.seen == 20, "every picture and its mirror image"
    before = tree(build.root)
    replace(build, load=lambda: pytest.fail("nothing is left to encode")).run()
    assert tree(build.root) == before


@pytest.mark.parametrize("dies_at", [2, 10, 14, 18])
def test_a_killed_build_goes_on(
    dies_at: int, build: Build, counting: Counting, encoder: Encoder, tmp_path: Path
) -> None:
    """Shards cost 10, 2 and 8 encodings."""
    counting.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        replace(build, load=lambda: counting).run()
    done = sum(dies_at >= cost for cost in (10, 12))
    state = cache_state(build.wanted, build.root)
    assert (state.complete, state.shards_done) == (False, done)
    assert not list(build.root.rglob(".*"))
    again = Counting(encoder.pipe, SIDE)
    replace(build, load=lambda: again).run()
    assert again.seen == 20 - [0, 10, 12][done]
    whole = replace(build, root=tmp_path / "undisturbed")
    whole.run()
    assert tree(whole.root) == tree(build.root)


def test_files_are_never_half_there(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while a file is written."""
    written = []

    def full(_tensors: dict, target: Path) -> None:
        written.append(target)
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        build.run()
    assert len(written) == 1
    assert not [path for path in build.root.rglob("*") if path.is_file()]


def test_two_processes_make_the_same_cache(build: Build, encoder: Encoder, tmp_path: Path) -> None:
    alone = replace(build, root=tmp_path / "alone")
    alone.run()
    barrier = threading.Barrier(2, timeout=60)
    counters = [Counting(encoder.pipe, SIDE) for _ in range(2)]
    folders: list[Path] = []

    def work(rank: int) -> None:
        share = Share(rank, 2, barrier.wait)
        folders.append(replace(build, load=lambda: counters[rank], share=share).run())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(folders) == 2
    assert tree(build.root) == tree(alone.root)
    assert [counter.seen for counter in counters] == [18, 2]


def test_processes_that_see_different_folders_are_told(build: Build) -> None:
    with pytest.raises(RunError, match="one and the same folder"):
        replace(build, share=Share(0, 2)).run()
    with pytest.raises(RunError, match="this process does not see it"):
        replace(build, root=build.root / "elsewhere", share=Share(1, 2)).run()


def test_another_run_at_the_same_cache_waits(build: Build, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds what the first one has made by then."""
    looks = []

    def look(_seconds: float) -> None:
        looks.append(counting.seen)
        if len(looks) == 2:
            first.close()
            build.run()

    monkeypatch.setattr("asdm_cli.data.cache.time.sleep", look)
    with ExitStack() as first:
        first.enter_context(only_writer(build.folder))
        assert replace(build, load=lambda: counting).run() == build.folder
    assert looks == [0, 0]
    assert counting.seen == 0
    with only_writer(build.folder):
        assert CachedSamples(build.run()).size == 10, "a complete cache is only read"


@pytest.mark.parametrize("file", ["cache.json", "00000.json", "empty.safetensors", "00000.safetensors"])
def test_rubbish_in_a_complete_cache_is_told_by_its_file(file: str, build: Build) -> None:
    place = build.run() / file
    whole = place.read_bytes()
    wrong = [b"", b"\0" * 100, b"[]", b"{}", b"5", whole[: len(whole) // 2]]
    if place.suffix == ".json":
        held = json.loads(whole)
        wrong += [json.dumps(kinds.replaced(held, way, by)).encode() for way, _ in kinds.leaves(held) for by in RUBBISH]
    told = []
    for raw in wrong:
        place.write_bytes(raw)
        try:
            samples = CachedSamples(build.folder)
            assert samples.captions is not None
            cache_state(build.wanted, build.root)
        except ModelError as error:
            told.append(str(error))
    assert len(told) >= 5
    assert all(str(place) in each for each in told)
    place.write_bytes(whole)
    assert CachedSamples(build.folder).size == 10


def faulty(tmp_path: Path) -> str:
    """One shard with a sample of every kind of fault that a sample has, a cut one, one without any use, a good one."""
    data = tmp_path / "faulty"
    good = tars.picture(1)
    wrong = [("a.png", b"x"), ("a.txt", b"a"), ("b.png", good), ("b.txt", b""), ("c.png", good), ("d.txt", b"d")]
    climbing = [("../e.png", good), ("../e.txt", b"e"), ("/f.png", good), ("/f.txt", b"f")]
    tars.write(data / "0.tar", [*tars.samples(0), *wrong, *climbing, *tars.samples(1)])
    cut = tars.tar_bytes(tars.samples(2, 3, 4))
    (data / "1.tar").write_bytes(cut[:9000])
    tars.write(data / "2.tar", wrong[:2])
    tars.write(data / "3.tar", tars.samples(5))
    return f"{data}/{{0..3}}.tar"


EXPECTED = {
    "corrupt image": 2,
    "empty caption": 1,
    "no caption": 1,
    "no image": 1,
    "unsafe name": 2,
    "truncated shard": 1,
    "no usable sample": 1,
}


def test_skip_counts_every_fault(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = find_shards([faulty(tmp_path)])
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(build.root)}
    skipping = replace(build, wanted=replace(build.wanted, shards=shards), on_faults="skip")
    samples = CachedSamples(skipping.run())
    assert samples.captions == [f"picture {number}" for number in (0, 1, 2, 5)]
    assert dict(samples.faults.counts) == EXPECTED
    assert len(samples.faults.examples) == sum(EXPECTED.values())
    assert "unsafe name: 2" in capsys.readouterr().err
    assert samples.read(torch.arange(4)).latents.shape == (4, 4, 8, 8)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(build.root)} == outside
    assert cache_state(skipping.wanted, build.root).faults == sum(EXPECTED.values())
    with pytest.raises(ModelError, match="unsafe name: 2"):
        replace(skipping, on_faults="stop").run()  # made by one recipe, read by a stricter one


def test_stop_tells_the_faults_of_the_first_shard(build: Build, tmp_path: Path, counting: Counting) -> None:
    shards = find_shards([faulty(tmp_path)])
    stopping = replace(build, wanted=replace(build.wanted, shards=shards), load=lambda: counting)
    with pytest.raises(ModelError) as caught:
        stopping.run()
    message = str(caught.value)
    for key, kind in (("a", "corrupt image"), ("b", "empty caption"), ("c", "no caption"), ("d", "no image")):
        assert f"{shards[0].url}: {key}: {kind}" in message
    assert message.count("unsafe name (") == 0
    assert message.count(": unsafe name\n") == 2
    assert "`faults: skip`" in message
    assert cache_state(stopping.wanted, build.root).shards_done == 0
    assert counting.seen <= 4, "what comes after a fault is looked at, not encoded"


def test_no_usable_sample_at_all(build: Build, tmp_path: Path) -> None:
    path = tars.write(tmp_path / "bad.tar", [("a.png", b"x"), ("a.txt", b"a")])
    for on_faults in ("skip", "stop"):
        wanted = replace(build.wanted, shards=find_shards([str(path)]))
        with pytest.raises(ModelError, match="corrupt image"):
            replace(build, wanted=wanted, on_faults=on_faults).run()


def test_many_faults_keep_twenty_examples(build: Build, tmp_path: Path) -> None:
    bad = [member for n in range(30) for member in ((f"x{n}.png", b"x"), (f"x{n}.txt", b"x"))]
    path = tars.write(tmp_path / "bad.tar", [*bad, *tars.samples(0)])
    wanted = replace(build.wanted, shards=find_shards([str(path)]))
    with pytest.raises(ModelError, match=r"\.\.\. and 10 more"):
        replace(build, wanted=wanted).run()
    samples = CachedSamples(replace(build, wanted=wanted, on_faults="skip").run())
    assert (samples.size, samples.faults.total(), len(samples.faults.examples)) == (1, 30, 20)


def test_values_that_are_not_finite_are_told(build: Build, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_scaled", lambda latents: latents * float("nan"))
        with pytest.raises(RunError, match="not finite"):
            build.run()
    monkeypatch.setattr(encoder, "_scaled", lambda latents: latents * 1e9)
    with pytest.raises(RunError, match="float16"):
        build.run()


def test_a_damaged_cache_is_told(build: Build) -> None:
    folder = build.run()
    file = folder / "00000.safetensors"
    whole = file.read_bytes()
    for damage in (whole[:-1], whole[:5], b"\xff" * 100, b""):
        file.write_bytes(damage)
        with pytest.raises(ModelError, match="is damaged"):
            CachedSamples(folder)


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 200), Path.unlink])
def test_a_cache_that_is_damaged_while_it_is_used_is_told(damage: Callable[[Path], None], build: Build) -> None:
    """Read through a mapping, a file that is cut short would end the process without a word."""
    samples = CachedSamples(build.run())
    samples.read(torch.arange(10))
    damage(build.folder / "00000.safetensors")
    with pytest.raises(ModelError, match=r"00000\.safetensors: is damaged .*; remove .* and let it be made again"):
        samples.read(torch.arange(10))


def test_the_record_says_what_it_is_made_of(build: Build) -> None:
    about = json.loads((build.run() / "cache.json").read_text())
    assert about["key"].startswith(build.folder.name)
    assert about["samples"] == [5, 1, 4]
    assert len(about["ingredients"]["shards"]) == 3
    assert {name.split("/")[0] for name in about["ingredients"]["parts"]} == {"vae", "text_encoder", "tokenizer"}
