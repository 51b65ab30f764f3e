"""The cache holds what VAE and text encoder compute, is keyed by all that it is made of, and survives a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from asdm_cli.data import builders
from asdm_cli.data import cache as caching
from asdm_cli.data.cache import CachedSamples, LatentCache, TextCache, UncachedSamples, refuse_streams
from asdm_cli.data.encoder import Encoder, check_resolution
from asdm_cli.data.shards import find_shards
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import find
from tests import tiny
from tests.data import tars
from tests.hardening import kinds
from tests.patches import pipes

SIDE = 32
CPU = torch.device("cpu")
RUBBISH = (*kinds.OTHERS, *kinds.HUGE)


def processes(rank: int = 0, world: int = 1, wait: Callable[[], object] = lambda: None) -> Any:
    return SimpleNamespace(process_index=rank, num_processes=world, is_main_process=rank == 0, wait_for_everyone=wait)


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
    return Encoder.load(find(str(tiny_pipeline)), SIDE, CPU)


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
def cache(tiny_pipeline: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentCache:
    monkeypatch.setattr(caching, "BATCH", 2)
    found, model = find_shards([shards]), find(str(tiny_pipeline))
    return LatentCache(model, SIDE, tmp_path / "cache", found, flip=True, faults="stop")


ALONE = processes()


def built(cache: LatentCache, encoder: Encoder, of: Any = ALONE) -> CachedSamples:
    return cache.open(of, lambda: encoder)


def uncached(cache: LatentCache, encoder: Encoder) -> UncachedSamples:
    index = replace(cache, latents=False)
    samples = index.open(ALONE, lambda: encoder)
    assert not list(index.folder.rglob("*.safetensors")), "an index encodes nothing"
    return samples


def pixels(*numbers: int) -> list[numpy.ndarray]:
    return [numpy.asarray(Image.open(io.BytesIO(tars.picture(number)))) for number in numbers]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def captions(cache: LatentCache) -> list[str]:
    notes = [json.loads((cache.folder / f"{number:05}.json").read_text()) for number in range(len(cache.shards))]
    return [caption for note in notes for _, caption, _, _ in note["samples"]]


def test_rows_are_what_the_parts_compute_cached_or_not(cache: LatentCache, encoder: Encoder) -> None:
    samples, each_time = built(cache, encoder), uncached(cache, encoder)
    assert captions(cache) == [f"picture {number}" for number in range(10)]
    rows, turned = [9, 0, 5, 5, 6, 4], torch.tensor([True, False, True, False, False, True])
    pictures = torch.from_numpy(numpy.stack(pixels(*rows))).permute(0, 3, 1, 2).float() / 127.5 - 1
    pictures[turned] = pictures[turned].flip(-1)
    vae, words = encoder.pipe.vae, [f"picture {row}" for row in rows]
    ids = encoder.pipe.tokenizer(words, padding="max_length", max_length=tiny.TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        text = encoder.pipe.text_encoder(ids).last_hidden_state
    with pytest.MonkeyPatch.context() as patch:  # of large pictures a few at a time
        patch.setattr("asdm_cli.data.encoder.PIXELS", 2 * encoder.resolution**2)
        torch.testing.assert_close(encoder.latents(pixels(*rows)), encoder.latents(pixels(*rows)[:6]))
        assert encoder.latents(pixels(*rows)).shape == latents.shape
    for found in (samples, each_time):
        batch = found.read(torch.tensor(rows), turned)
        assert (found.size, found.faults.total(), batch.condition.added) == (10, 0, {})
        assert batch.latents.dtype == batch.condition.text.dtype == torch.float32
        torch.testing.assert_close(batch.latents, latents, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(batch.condition.text, text, atol=2e-3, rtol=1e-3)
        assert not torch.allclose(batch.latents[2], batch.latents[3], atol=1e-2), "a mirrored picture is another"
        torch.testing.assert_close(found.empty.text, encoder.condition([""]).text, atol=2e-3, rtol=1e-3)
        for value in (batch.latents, found.empty.text):
            assert not value.is_inference(), "it takes part in training"
    again, single = built(cache, encoder).read(torch.tensor(rows), turned), samples.read(torch.tensor(rows[1:2]))
    assert torch.equal(again.latents, samples.read(torch.tensor(rows), turned).latents)
    assert torch.equal(single.latents[0], again.latents[1]), "to the bit, whatever is read beside it"
    assert torch.equal(single.condition.text[0], again.condition.text[1])
    for row in (-1, 10):
        with pytest.raises(IndexError, match="10 samples"):
            samples.read(torch.tensor([row]))


def test_conditions_alone_are_those_that_are_read_with_pictures(cache: LatentCache, encoder: Encoder) -> None:
    for samples in (built(cache, encoder), uncached(cache, encoder)):
        rows = torch.tensor([9, 0, 5])
        assert torch.equal(samples.conditions(rows).text, samples.read(rows).condition.text)


@pytest.fixture
def texts(cache: LatentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextCache:
    """Seven captions in three files."""
    monkeypatch.setattr(caching, "TOGETHER", 3)
    return TextCache(cache.model, SIDE, tmp_path / "texts", [f"caption {number}" for number in range(7)])


def test_captions_without_pictures_are_encoded_once_and_gone_on_with(texts: TextCache, counting: Counting) -> None:
    condition, asked = counting.condition, list[str]()

    def counted(captions: Sequence[str]) -> Any:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.extend(captions)
        return condition(captions)

    counting.condition = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        texts.open(ALONE, lambda: counting)
    assert str(texts).endswith("1 of 3 files are there")
    assert asked == [*texts.captions[:5]]
    asked.clear()
    counting.condition = lambda captions: (asked.extend(captions), condition(captions))[1]  # type: ignore[method-assign]
    found = texts.open(ALONE, lambda: counting)
    assert asked == [*texts.captions[3:]]
    assert (found.size, str(texts).endswith("complete, 7 captions")) == (7, True)
    rows = torch.tensor([6, 0, 4, 4])
    wanted = condition([texts.captions[row] for row in rows])
    torch.testing.assert_close(found.conditions(rows).text, wanted.text, atol=2e-3, rtol=1e-3)
    texts.open(ALONE, lambda: pytest.fail("nothing is left to encode"))
    others = [replace(texts, captions=texts.captions[::-1]), replace(texts, resolution=64)]
    assert len({each.key for each in (texts, *others)}) == 3
    with pytest.raises(IndexError, match="7 samples"):
        found.conditions(torch.tensor([7]))


def test_uncached_needs_plain_tars_that_stay(
    cache: LatentCache, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="train from a cache, or unpack"):
        refuse_streams(find_shards(["pocket"]))
    samples = uncached(cache, encoder)
    Path(cache.shards[0].url).write_bytes(bytes(2000))
    with pytest.raises(RunError, match="did it change"):
        samples.read(torch.tensor([0]))
    store = fsspec.filesystem("memory")
    store.pipe("/shelf/a.tar", tars.tar_bytes(tars.samples(0, 1, 2)))
    try:
        samples = uncached(replace(cache, shards=find_shards(["memory://shelf/a.tar"])), encoder)
        torch.testing.assert_close(samples.read(torch.tensor([2, 0])).latents, encoder.latents(pixels(2, 0)))
        tars.break_off(monkeypatch)
        with pytest.raises(RunError, match=r"a.tar by memory .*: cannot be read .*PayloadError: 25600 of 51200"):
            samples.read(torch.tensor([2, 0]))
    finally:
        store.rm("/shelf", recursive=True)


def test_sdxl(cache: LatentCache, tmp_path: Path) -> None:
    pipes.pipe("xl").save_pretrained(tmp_path / "sdxl")
    model = find(str(tmp_path / "sdxl"))
    encoder = Encoder.load(model, SIDE, CPU)
    samples = built(replace(cache, model=model), encoder)
    condition = samples.read(torch.tensor([3, 8])).condition
    wanted = encoder.pipe.encode_prompt(["picture 3", "picture 8"], do_classifier_free_guidance=False)
    for found, each in ((condition.text, wanted[0]), (condition.added["text_embeds"], wanted[2])):
        torch.testing.assert_close(found, each, atol=5e-3, rtol=1e-3)
    assert condition.text.shape == (2, tiny.TOKENS, tiny.WIDTH)
    assert condition.added["time_ids"].tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 2
    assert not samples.empty.text.any(), "SDXL's missing prompt is zeros"
    assert not samples.empty.added["text_embeds"].any()


def test_a_vae_with_shift_or_means(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoder.latents(pixels(0)) / encoder.vae.config.scaling_factor
    means = {"latents_mean": [1.0] * 4, "latents_std": [4.0] * 4}
    for given, shift, factor in (({"shift_factor": 0.5}, 0.5, 2), (means, 1, 0.5)):
        config = type("Config", (dict,), {"__getattr__": dict.__getitem__})({"scaling_factor": 2.0, **given})
        with monkeypatch.context() as patch:
            patch.setattr(type(encoder.vae), "config", config)
            torch.testing.assert_close(encoder.latents(pixels(0)), (plain - shift) * factor)


def test_resolution_fits_the_vae(tiny_pipeline: Path) -> None:
    check_resolution(find(str(tiny_pipeline)), 32)
    for wrong in (0, -4, 30, 3):
        with pytest.raises(ModelError, match=r"multiple of 4; take \d"):
            check_resolution(find(str(tiny_pipeline)), wrong)


def changed(file: Path) -> None:
    """Another text, or other weights under the same header."""
    if file.suffix == ".json":
        file.write_text(file.read_text() + "\n")
        return
    tensors, header = load_file(file), file.read_bytes()[:200]
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    assert file.read_bytes()[:200] == header


INGREDIENTS = (
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
)


def test_another_ingredient_is_another_key(
    cache: LatentCache, shards: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    changed(copy / "unet/diffusion_pytorch_model.safetensors")
    assert replace(cache, model=find(str(copy))).key == cache.key, "the UNet and the place have no part in it"
    keys = [cache.key]
    for file in INGREDIENTS:
        changed(copy / file)
        keys.append(replace(cache, model=find(str(copy))).key)
    keys += [replace(cache, **other).key for other in ({"resolution": 64}, {"flip": False}, {"latents": False})]
    keys += [replace(cache, shards=other).key for other in (cache.shards[:2], cache.shards[::-1])]
    os.utime(tmp_path / "data" / "1.tar", ns=(5, 5))
    keys.append(replace(cache, shards=find_shards([shards])).key)
    for constant in ("CACHE_FORMAT", "DATA_FORMAT", "CROP"):
        with monkeypatch.context() as patch:
            patch.setattr(caching, constant, "other")
            keys.append(replace(cache).key)
    assert len(set(keys)) == len(keys) == 15


def test_a_complete_cache_is_only_read(cache: LatentCache, counting: Counting) -> None:
    assert str(cache).endswith("to be made")
    built(cache, counting)
    assert str(cache).endswith("complete, 10 samples")
    assert counting.seen == 20, "every picture and its mirror image"
    before = tree(cache.root)
    with FileLock(cache.folder / builders.LOCK):
        cache.open(ALONE, lambda: pytest.fail("nothing is left to encode"))
    assert tree(cache.root) == before
    about = json.loads((cache.folder / "cache.json").read_text())
    assert about["key"].startswith(cache.folder.name)
    assert about["samples"] == [5, 1, 4]
    assert {name.split("/")[0] for name in about["ingredients"]["parts"]} == {"vae", "text_encoder", "tokenizer"}


@pytest.mark.parametrize("dies_at", [2, 10, 14, 18])
def test_a_killed_build_goes_on(
    dies_at: int, cache: LatentCache, counting: Counting, encoder: Encoder, tmp_path: Path
) -> None:
    """Shards cost 10, 2 and 8 encodings."""
    counting.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        built(cache, counting)
    done = sum(dies_at >= cost for cost in (10, 12))
    assert str(cache).endswith(f"{done} of 3 shards are there" if done else "to be made")
    assert not list(cache.root.rglob(".*.partial"))
    again = Counting(encoder.pipe, SIDE)
    built(cache, again)
    assert again.seen == 20 - [0, 10, 12][done]
    whole = replace(cache, root=tmp_path / "undisturbed")
    built(whole, encoder)
    assert tree(whole.root) == tree(cache.root)


def test_a_large_shard_is_kept_in_pieces_and_gone_on_with(
    cache: LatentCache, counting: Counting, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(cache, shards=cache.shards[:1], root=tmp_path / "large")
    whole = built(large, encoder)
    assert [file.name for file in large.folder.glob("0*.safetensors")] == ["00000.safetensors"]
    monkeypatch.setattr(caching, "PIECE", 2)
    small = replace(large, root=tmp_path / "small")
    counting.dies_at = 8  # of ten: five pictures, and mirrored
    with pytest.raises(KeyboardInterrupt):
        built(small, counting)
    assert sorted(file.name for file in small.folder.glob("0*")) == ["00000-001.safetensors", "00000.safetensors"]
    again = Counting(encoder.pipe, SIDE)
    pieces = built(small, again)
    assert again.seen == 2
    assert captions(small) == captions(large)
    rows, flipped = torch.tensor([4, 0, 3, 1, 2, 2]), torch.tensor([1, 0, 0, 1, 0, 1]).bool()
    for one, other in ((whole, pieces), (CachedSamples(large.folder), CachedSamples(small.folder))):
        ours, theirs = one.read(rows, flipped), other.read(rows, flipped)
        assert torch.allclose(ours.latents, theirs.latents, atol=1e-3)
        assert torch.equal(ours.condition.text, theirs.condition.text)
    (small.folder / "00000-002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"00000-002.safetensors: is damaged"):
        CachedSamples(small.folder)


def test_others_are_waited_for_as_long_as_they_write(
    cache: LatentCache, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "QUIET", 1.5)
    whole = replace(cache, root=tmp_path / "alone")
    built(whole, encoder)
    cache.folder.mkdir(parents=True)

    def slowly() -> None:
        for number in range(3):
            time.sleep(1)
            shutil.copyfile(whole.folder / f"{number:05}.json", cache.folder / f"{number:05}.json")

    with ThreadPoolExecutor(1) as other:
        written = other.submit(slowly)
        cache._await_parts()
        assert written.done()
    (cache.folder / "00001.json").unlink()
    with pytest.raises(RunError, match="other processes have written nothing for 0 minutes"):
        cache._await_parts()


def test_who_waits_does_not_mind_files_that_go_while_it_looks(
    cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.folder.mkdir(parents=True)
    for name in ("00000.json", "00001.json", "00002.json"):
        (cache.folder / name).touch()
    gone, stat = cache.folder / "gone", Path.stat
    gone.touch()
    looks = iter([False, False, True])

    def vanishing(path: Path, **how: Any) -> os.stat_result:
        if path == gone:
            raise FileNotFoundError(path)
        return stat(path, **how)

    monkeypatch.setattr(builders, "POLL", 0.01)
    monkeypatch.setattr(Path, "stat", vanishing)
    builders.wait_until(lambda: next(looks), cache.folder)
    assert next(looks, None) is None


def test_files_are_never_half_there(cache: LatentCache, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tensors: dict[str, torch.Tensor], target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        built(cache, encoder)
    assert not [path for path in cache.root.rglob("*") if path.is_file() and path.name != builders.LOCK]


def test_two_processes_make_the_same_cache(cache: LatentCache, encoder: Encoder, tmp_path: Path) -> None:
    alone = replace(cache, root=tmp_path / "alone")
    built(alone, encoder)
    barrier = threading.Barrier(2, timeout=60)
    counters = [Counting(encoder.pipe, SIDE) for _ in range(2)]
    with ThreadPoolExecutor(2) as both:
        made = both.map(lambda rank: built(cache, counters[rank], processes(rank, 2, barrier.wait)).size, range(2))
        assert list(made) == [10, 10]
    assert tree(cache.root) == tree(alone.root)
    assert [counter.seen for counter in counters] == [18, 2]


def test_processes_that_see_different_folders_are_told(
    cache: LatentCache, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "SEEN", 0.0)
    with pytest.raises(RunError, match="one and the same folder"):
        built(cache, encoder, processes(0, 2))
    with pytest.raises(RunError, match="this process does not see it"):
        built(replace(cache, root=cache.root / "elsewhere"), encoder, processes(1, 2))
    assert not list(cache.root.rglob(".process-0"))
    (cache.folder / ".process-7").touch()
    built(cache, encoder)
    assert not list(cache.root.rglob(".process-*")), "one that was killed left it"


def test_another_run_at_the_same_cache_waits(
    cache: LatentCache, encoder: Encoder, counting: Counting, tmp_path: Path
) -> None:
    """And finds what the first one has made by then."""
    whole = replace(cache, root=tmp_path / "first")
    built(whole, encoder)
    cache.folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other, FileLock(cache.folder / builders.LOCK) as lock:
        second = other.submit(built, cache, counting)
        time.sleep(0.3)
        assert not second.done()
        for file in whole.folder.glob("[!.]*"):
            shutil.copyfile(file, cache.folder / file.name)
        lock.release()
        assert (second.result(60).size, counting.seen) == (10, 0)


@pytest.mark.parametrize("file", ["cache.json", "00000.json", "empty.safetensors", "00000.safetensors"])
def test_rubbish_in_a_complete_cache_is_told_by_its_file(file: str, cache: LatentCache, encoder: Encoder) -> None:
    built(cache, encoder)
    index = replace(cache, latents=False)
    uncached(cache, encoder)
    for folder in {index.folder, cache.folder} if file.endswith(".json") else {cache.folder}:
        place = folder / file
        whole, told = place.read_bytes(), []
        wrong = [b"", b"\0" * 100, b"[]", b"{}", b"5", whole[:-1], whole[: len(whole) // 2]]
        if place.suffix == ".json":
            held = json.loads(whole)
            leaves = [way for way, _ in kinds.leaves(held)]
            wrong += [json.dumps(kinds.replaced(held, way, by)).encode() for way in leaves for by in RUBBISH]
        for raw in wrong:
            place.write_bytes(raw)
            try:
                CachedSamples(cache.folder)
                UncachedSamples(index.folder, index.shards, encoder)
                str(cache)
            except ModelError as error:
                told.append(str(error))
        assert all(str(place) in each and "let it be made again" in each for each in told)
        assert len(told) >= 5 or (file, folder) == ("00000.json", cache.folder)
        place.write_bytes(whole)
    assert CachedSamples(cache.folder).size == 10


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 200), Path.unlink])
def test_a_cache_that_is_damaged_while_it_is_used_is_told(
    damage: Callable[[Path], None], cache: LatentCache, encoder: Encoder
) -> None:
    """Read through a mapping, a file that is cut short would end the process without a word."""
    samples = built(cache, encoder)
    samples.read(torch.arange(10))
    damage(cache.folder / "00000.safetensors")
    with pytest.raises(ModelError, match=r"00000\.safetensors: is damaged .*; remove .* and let it be made again"):
        samples.read(torch.arange(10))


def faulty(tmp_path: Path) -> str:
    """One shard with a sample of every kind of fault that a sample has, a cut one, one without any use, a good one."""
    good, data = tars.picture(1), tmp_path / "faulty"
    wrong = [("a.png", b"x"), ("a.txt", b"a"), ("b.png", good), ("b.txt", b""), ("c.png", good), ("d.txt", b"d")]
    wrong += [("../e.png", good), ("../e.txt", b"e"), ("/f.png", good), ("/f.txt", b"f")]
    tars.write(data / "0.tar", [*tars.samples(0), *wrong, *tars.samples(1)])
    (data / "1.tar").write_bytes(tars.tar_bytes(tars.samples(2, 3, 4))[:9000])
    tars.write(data / "2.tar", wrong[:2])
    tars.write(data / "3.tar", tars.samples(5))
    return f"{data}/{{0..3}}.tar"


ONE_EACH = ("empty caption", "no caption", "no image", "truncated shard", "no usable sample")
EXPECTED = {"corrupt image": 2, "unsafe name": 2, **dict.fromkeys(ONE_EACH, 1)}


def test_skip_counts_every_fault(
    cache: LatentCache, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipping = replace(cache, shards=find_shards([faulty(tmp_path)]), faults="skip")
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(cache.root)}
    samples = built(skipping, encoder)
    assert captions(skipping) == [f"picture {number}" for number in (0, 1, 2, 5)]
    assert dict(samples.faults.counts) == EXPECTED
    assert len(samples.faults.examples) == sum(EXPECTED.values())
    assert "unsafe name: 2" in capsys.readouterr().err
    assert samples.read(torch.arange(4)).latents.shape == (4, 4, 8, 8)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(cache.root)} == outside
    with pytest.raises(ModelError, match="unsafe name: 2"):
        built(replace(skipping, faults="stop"), encoder)  # made by one recipe, read by a stricter one


def test_captions_that_the_text_encoder_cuts_are_told(
    cache: LatentCache, texts: TextCache, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a fox and an owl " * 40
    tars.write(tmp_path / "long.tar", [*tars.samples(0, 1), ("2.png", tars.picture(2)), ("2.txt", long.encode())])
    known = replace(cache, shards=find_shards([f"{tmp_path}/long.tar"]))
    alone = replace(texts, captions=("a fox", long, long))
    for _ in range(2):
        built(known, encoder)
        alone.open(ALONE, lambda: encoder)
        told = " ".join(capsys.readouterr().err.split())
        assert "data: 1 of 3 captions are longer than what the text encoder takes in, and cut there" in told
        assert "captions without pictures: 2 of 3 captions are longer" in told


def test_stop_tells_the_faults_of_the_first_shard(cache: LatentCache, tmp_path: Path, counting: Counting) -> None:
    stopping = replace(cache, shards=find_shards([faulty(tmp_path)]))
    with pytest.raises(ModelError) as caught:
        built(stopping, counting)
    message = str(caught.value)
    for key, kind in (("a", "corrupt image"), ("b", "empty caption"), ("c", "no caption"), ("d", "no image")):
        assert f"{stopping.shards[0].url}: {key}: {kind}" in message
    assert message.count(": unsafe name\n") == 2
    assert "`faults: skip`" in message
    assert str(stopping).endswith("to be made")
    assert counting.seen <= 4, "what comes after a fault is looked at, not encoded"


def test_no_usable_sample_and_too_many_faults(cache: LatentCache, encoder: Encoder, tmp_path: Path) -> None:
    bad = [member for n in range(30) for member in ((f"x{n}.png", b"x"), (f"x{n}.txt", b"x"))]
    useless, some = (tars.write(tmp_path / f"{n}.tar", [*bad, *tars.samples(*range(n))]) for n in (0, 1))
    for faults in ("skip", "stop"):
        with pytest.raises(ModelError, match="corrupt image"):
            built(replace(cache, shards=find_shards([str(useless)]), faults=faults), encoder)
    with pytest.raises(ModelError, match=r"\.\.\. and 10 more"):
        built(replace(cache, shards=find_shards([str(some)])), encoder)
    samples = built(replace(cache, shards=find_shards([str(some)]), faults="skip"), encoder)
    assert (samples.size, samples.faults.total(), len(samples.faults.examples)) == (1, 30, 20)


@pytest.mark.parametrize(("factor", "words"), [(float("nan"), "not finite"), (1e9, "float16")])
def test_values_that_cannot_be_kept_are_told(
    factor: float, words: str, cache: LatentCache, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "scaled", lambda latents: latents * factor)
    with pytest.raises(RunError, match=words):
        built(cache, encoder)
