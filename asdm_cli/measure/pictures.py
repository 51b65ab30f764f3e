"""Sets of pictures as PNG files named by prompt index: written one by one and whole, read as batches of tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from asdm_cli.data.images import UnreadableError, is_whole, read_file
from asdm_cli.errors import RunError


@dataclass(frozen=True)
class PictureSet:
    """`count` pictures of one size; picture i is `folder/00000i.png`."""

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06}.png"

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of `indices` whose file is not there or not whole."""
        return [index for index in indices if not is_whole(self.path(index))]

    def save(self, index: int, picture: Image.Image) -> None:
        """Whole or not at all: a kill leaves a `.partial` file that nobody reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path(index).with_suffix(f".partial-{os.getpid()}")
        picture.save(partial, "PNG")
        partial.replace(self.path(index))

    def first(self, count: int) -> PictureSet:
        return PictureSet(self.folder, min(count, self.count))

    def batches(self, size: int = 32) -> Iterator[Tensor]:
        """uint8 [<= size, 3, height, width], in order of index."""
        for start in range(0, self.count, size):
            yield torch.stack([read(self.path(i)) for i in range(start, min(start + size, self.count))])

    def digest(self) -> str:
        """SHA-256 over the files' bytes: two sets share it only if they hold the same pictures."""
        whole = hashlib.sha256()
        for index in range(self.count):
            whole.update(hashlib.sha256(self.path(index).read_bytes()).digest())
        return whole.hexdigest()


def read(path: Path) -> Tensor:
    """uint8 [3, height, width]."""
    try:
        pixels = numpy.array(read_file(path))
    except UnreadableError as error:
        raise RunError(f"{path}: cannot be read ({error}); run the same command again, it is drawn anew") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 [3, height, width] -> RGB picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
