"""What is learnt from where there are no data: pictures that the teacher draws of prompts, once, kept beside the cache
of what is encoded of them."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from asdm_cli.data.builders import only_builder
from asdm_cli.data.cache import contents
from asdm_cli.data.pack import pack
from asdm_cli.data.shards import Shard
from asdm_cli.errors import RunError
from asdm_cli.models.directory import UNET, ModelDirectory
from asdm_cli.models.load import load_pipeline, load_unet
from asdm_cli.models.schedulers import planned_scheduler, set_sampler
from asdm_cli.recipe.verbs import Generate
from asdm_cli.sampling.generate import SamplingSettings, Share, draw, place
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.prompts import PromptList

SHARD = 1000
"""Pictures in a shard."""
PICTURES, SHARDS, CAPTIONS = "pictures", "shards", "metadata.jsonl"


@dataclass(frozen=True)
class GeneratedData:
    """Pictures of `prompts` by the UNet of `teacher` in the pipeline of `host`, square, of so many pixels.

    They lie in a folder below `root` that is named after all that they depend on but the machine: on a GPU their last
    bits depend on that, too. Until all are drawn each is a file, so that a kill costs those under way; then they are
    webdataset shards like any others.
    """

    settings: Generate
    prompts: PromptList
    teacher: ModelDirectory
    host: ModelDirectory
    resolution: int
    root: Path
    device: str

    @functools.cached_property
    def folder(self) -> Path:
        around = [name for name in self.host.classes if name in self.host.components and name != UNET]
        index = {name: value for name, value in self.host.index.items() if name[0] != "_" or name == "_class_name"}
        made = {
            "prompts": self.prompts.digest,
            "settings": self.settings.model_dump(exclude={"prompts"}),
            "resolution": self.resolution,
            "teacher": contents(self.teacher, [UNET]),
            "pipeline": [index, contents(self.host, around)],
        }
        key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        return self.root / f"generated-{key[:16]}"

    @property
    def pictures(self) -> ImageSet:
        return ImageSet(self.folder / PICTURES, len(self.prompts.prompts))

    @property
    def done(self) -> bool:
        """Shards come all at once."""
        return (self.folder / SHARDS).is_dir()

    def shards(self) -> list[Shard]:
        """Before they are drawn, too: what is made of them is named after the folder."""
        files = [self.folder / SHARDS / f"{number:05}.tar" for number in range(-(-self.pictures.count // SHARD))]
        sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
        return [
            Shard(str(file), "local", size, f"{self.folder.name} {file.name}")
            for file, size in zip(files, sizes, strict=True)
        ]

    def calls(self) -> int:
        """UNet calls, of one latent each, of the pictures that are still to be drawn."""
        scheduler = planned_scheduler(self.host, self.settings.sampler, self.settings.steps)
        absent = 0 if self.done else len(self.pictures.absent())
        return absent * len(scheduler.timesteps) * (2 if self.settings.guidance > 1 else 1)

    @property
    def told(self) -> str:
        """In words that say nothing of this machine."""
        count, how = self.pictures.count, self.settings
        drawn = f"{count:,} pictures of {self.prompts.title} by {self.teacher.name}"
        return f"{drawn}, {how.steps} steps, sampler {how.sampler}, guidance {how.guidance:g}, seed {how.seed}"

    def __str__(self) -> str:
        there = 0 if self.done else self.pictures.count - len(self.pictures.absent())
        state = "complete" if self.done else f"{there:,} are there" if there else "to be drawn"
        return f"{self.told}, in {self.folder}: {state}"

    def draw(self, state: PartialState, batch: int) -> None:
        """All processes come here together, and each draws its share of what is missing."""
        first = state.is_main_process
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
        with only_builder(self.folder) if first and not self.done else nullcontext():
            state.wait_for_everyone()
            if not self.done:
                share = Share(state.process_index, state.num_processes)
                mine = share.of(range(self.pictures.count), batch, state.device)
                self._draw(self.pictures.missing(mine), state, batch)
                state.wait_for_everyone()
                if first:
                    self._pack()
            if first:  # also of one that was killed here
                shutil.rmtree(self.folder / PICTURES, ignore_errors=True)
            state.wait_for_everyone()

    def _draw(self, wanted: list[int], state: PartialState, batch: int) -> None:
        if not wanted:
            return
        how, (device, dtype) = self.settings, place(self.device, self.settings.dtype, state)
        pipe: Any = load_pipeline(self.host, device, dtype, with_unet=False)
        pipe.unet = load_unet(self.teacher, device, dtype)
        set_sampler(pipe, how.sampler)
        settings = SamplingSettings(how.steps, how.guidance, self.resolution, how.seed, how.sampler, batch)
        for index, image in draw(pipe, self.prompts.prompts, wanted, settings, what="drawing what is learnt from"):
            self.pictures.save(index, image)
        del pipe
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _pack(self) -> None:
        if absent := len(self.pictures.absent()):
            raise RunError(
                f"{self.folder}: lacks {absent} pictures that other processes drew; all must see one and the same "
                "folder: choose a `cache_folder` that the machines share"
            )
        captions = [
            json.dumps({"file_name": self.pictures.path(index).name, "text": prompt}) + "\n"
            for index, prompt in enumerate(self.prompts.prompts)
        ]
        (self.folder / PICTURES / CAPTIONS).write_text("".join(captions), encoding="utf-8")
        unfinished = self.folder / f"{SHARDS}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        pack(self.folder / PICTURES, unfinished, SHARD, seed=None, strict=True)
        unfinished.rename(self.folder / SHARDS)
