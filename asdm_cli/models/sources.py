"""What a recipe's `model:` may say, and the directory that each becomes: a path, `pocket`, or a model of the hub.

A path that exists wins over a model of the hub; the hub's cache on this machine wins over the network. No torch.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from asdm_cli.console import console, is_first, note
from asdm_cli.errors import AsdmError, ModelError, RunError
from asdm_cli.models.directory import (
    BESIDE_FILE,
    CONFIG,
    CONFIGS,
    EXTRAS,
    INDEX,
    POCKET,
    TEXTS,
    UNETS,
    ModelDirectory,
    check_index,
)
from asdm_cli.models.write import explained
from asdm_cli.recipe.redact import told_apart
from asdm_cli.recipe.schema import local
from asdm_cli.unet.weights import CONVERT, INDEX_OF_SHARDS, SNAPSHOTS, STEMS, UNSAFE, by_variant, preferred

RUNS = "runs"
"""Where results lie unless a recipe says otherwise: nobody asks the hub for one that has not been made yet."""
HUB = ("huggingface.co", "hf.co")
WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either is what a tokenizer is made of."""
BESIDE = tuple(f"{name}/" for name in (*EXTRAS, UNETS))
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_NAME = r"\w[\w.-]*/\w[\w.-]*"
_REPOSITORY = re.compile(rf"(?P<name>{_NAME})(?:@(?P<revision>\S+))?")
_PAGE = re.compile(
    rf"/(?P<name>{_NAME})(?:/(?:tree|commit|blob|resolve)/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<file>.+))?)?/?"
)
_FILES = {".safetensors", ".json", ".yaml", ".yml", ".tar", ".txt", ".csv", ".png", ".gguf", *UNSAFE}
"""What ends the names of files: `models/mine.safetensors` that is not there is no model of the hub."""


def locate(text: str) -> ModelDirectory:
    """The directory that `text` means, not looked into yet. Raises ModelError, or RunError where the network fails."""
    if text == POCKET:
        return _pocket()
    path = local(text)
    if path.exists():
        return _on_disk(path, text)
    if found := hub_name(text):
        return _on_hub(*found)
    if (address := _address(text)) and address.file.endswith(".safetensors"):
        return _file_on_hub(address, text)
    if "://" in text:
        raise ModelError(f"{text}: is no model's address on the hub; download what it names, and give its path")
    near = difflib.get_close_matches(path.name, _names(path.parent), 1)
    kind = "file" if path.suffix in _FILES else "directory"
    raise ModelError(f"{text}: no such {kind}; {f'give {path.with_name(near[0])}' if near else _GIVE}")


def _names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if not each.name.startswith(".")] if folder.is_dir() else []


_GIVE = f"give a model directory, a run directory, a model of the hub as ORG/NAME, or `{POCKET}`"


def hub_name(text: str) -> tuple[str, str] | None:
    """Repository and revision (or "") of a model of the hub, as `org/name`, `org/name@revision` or an address; None for
    other texts. What begins with a folder that is here is a path, even if it leads nowhere."""
    if "://" in text or text.startswith(HUB):
        address = _address(text)
        return (address.name, address.revision) if address and not address.file else None
    found, first = _REPOSITORY.fullmatch(text), text.partition("/")[0]
    if not found or Path(text).suffix in _FILES or first == RUNS or Path(first).exists() or Path(text).exists():
        return None
    return found["name"], found["revision"] or ""


def names_directory(text: str) -> bool:
    """Whether this is the source of a whole model, rather than any path, glob or address."""
    return text == POCKET or Path(text).is_dir() or hub_name(text) is not None


@dataclass(frozen=True)
class _Address:
    """A page of the hub: a model's, one of a revision of it, or a file's."""

    name: str
    revision: str = ""
    file: str = ""


def _address(text: str) -> _Address | None:
    if "://" not in text and not text.startswith(HUB):
        return None
    from huggingface_hub import constants

    address = urlsplit(text if "://" in text else f"https://{text}")
    if (address.hostname or "").removeprefix("www.") not in (*HUB, urlsplit(constants.ENDPOINT).hostname):
        return None
    found = _PAGE.fullmatch(unquote(address.path))
    return _Address(found["name"], *(found[key] or "" for key in ("revision", "file"))) if found else None


# --- on this machine ---


def _pocket() -> ModelDirectory:
    path = Path(str(resources.files("asdm_cli") / "pocket" / "weights"))
    if (path / INDEX).is_file():
        return ModelDirectory(path, POCKET, POCKET)
    raise ModelError(f"{path}: the model that ships with the package is not there; install again, or run `make pocket`")


def _on_disk(path: Path, text: str) -> ModelDirectory:
    if path.is_file():
        return _file(path, text)
    if cached := _CACHED.fullmatch(path.resolve().name):
        return _snapshot(_newest(path), "/".join(cached.groups()))
    if (snapshots := path.resolve().parent).name == SNAPSHOTS and (cached := _CACHED.fullmatch(snapshots.parent.name)):
        return _snapshot(path, "/".join(cached.groups()), path.resolve().name)
    for folder in (path, path / "model"):
        if (folder / INDEX).is_file() or (folder / CONFIG).is_file():
            return ModelDirectory(folder, path.resolve().name, told_apart(text))
    indices = [*sorted(path.glob(f"*/{INDEX}")), *sorted(path.glob(f"*/*/model/{INDEX}"))]  # the latter of students
    whole = [each for each in indices if each.parent.name != BESIDE_FILE]
    inside = [*whole, *sorted(path.glob("*.safetensors"))]
    first = inside[0].parent if inside and inside[0].name == INDEX else next(iter(inside), None)
    ask = f"give one of those in it, as {first}" if first else "is it a model directory?"
    raise ModelError(f"{text}: has neither {INDEX} nor {CONFIG} nor a model/ that has; {ask}")


def _file(path: Path, text: str) -> ModelDirectory:
    """A file that is a whole model by itself; others belong to one."""
    from asdm_cli.models.from_single_file import from_single_file, unpickled

    single = path.suffix == ".safetensors"  # may lie in a pipeline's directory and be no part of it
    home = path.parent
    above = home.parent if home.parts else Path("..")
    for folder, places in ((above, [""]), *([] if single else [(home, ["", "model"])])):
        if any((folder / each / INDEX).is_file() for each in places):
            raise ModelError(f"{text}: is a part of a model; give {folder}")
    if (path.parent / CONFIG).is_file():
        raise ModelError(f"{text}: is a part of a model; give {path.parent}")
    if path.suffix in UNSAFE:
        raise ModelError(unpickled(text))
    if not single:
        raise ModelError(f"{text}: is a file, and of those only .safetensors may be models; {_GIVE}")
    return from_single_file(path, text)


def _snapshot(folder: Path, name: str, revision: str = "") -> ModelDirectory:
    """A revision of a model in the hub's cache."""
    if not any((folder / file).is_file() for file in (INDEX, CONFIG)):
        raise ModelError(f"{folder}: has neither {INDEX} nor {CONFIG}; give {name}, and it is fetched")
    return ModelDirectory(folder, name, f"{name}@{revision}" if revision else name, folder.resolve().name)


def _newest(cache: Path) -> Path:
    """The snapshot that a model's folder in the hub's cache stands for: that of `main`, or the only one."""
    snapshots, main = cache / SNAPSHOTS, cache / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = sorted(snapshots.glob("*"))
    if len(found) == 1:
        return found[0]
    have = ", ".join(f"{SNAPSHOTS}/{each.name}" for each in found) or "no snapshot"
    raise ModelError(f"{cache}: holds {have}, and no refs/main that says which one counts; give one of them")


# --- on the hub ---


def _on_hub(name: str, revision: str) -> ModelDirectory:
    """A model from the hub's cache, if all of it is there that drawing needs; else the rest is fetched into it."""
    with _in_words(name, revision):
        found = _cached(name, revision)
        if found is None or _missing(found):
            found = _fetch(name, revision)
    return found


def _cached(name: str, revision: str) -> ModelDirectory | None:
    from huggingface_hub import try_to_load_from_cache

    for file in (INDEX, CONFIG):
        if isinstance(place := try_to_load_from_cache(name, file, revision=revision or None), str):
            return _snapshot(Path(place).parent, name, revision)
    return None


def _missing(directory: ModelDirectory) -> bool:
    """Whether something has not been fetched yet that drawing needs."""
    if directory.is_pipeline:
        check_index(directory)
    for name, folder in directory.components.items():
        if not any((folder / file).is_file() for file in CONFIGS):
            return True
        words = [all((folder / file).is_file() for file in files) for files in WORDS]
        if name.startswith("tokenizer") and not any(words):
            return True
        try:
            if (folder / CONFIG).is_file():
                directory.weight_files(name)
        except ModelError:
            return True
    return False


def _fetch(name: str, revision: str) -> ModelDirectory:
    """Configurations, tokenizer files and safetensors, nothing else, and of those what drawing needs."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    told = HfApi().model_info(name, revision=revision or None, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in told.siblings or []}
    first = next((file for file in (INDEX, CONFIG) if file in sizes), None)
    if first is None:
        raise ModelError(_no_model(name, list(sizes)))
    found = _snapshot(Path(hf_hub_download(name, first, revision=told.sha)).parent, name, revision)
    check_index(found)
    classes = [each for each in found.classes if each not in found.optional] if found.is_pipeline else []
    wanted = _needed(name, sizes, classes)
    size = sum(sizes[file] for file in wanted)
    amount = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
    note(f"{name}: {amount} from {constants.ENDPOINT}, kept in {constants.HF_HUB_CACHE}")
    with _bars():
        patterns = [glob.escape(file) for file in wanted]
        folder = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    return _snapshot(Path(folder), name, revision)


def _needed(repository: str, sizes: Mapping[str, int], components: Sequence[str]) -> list[str]:
    """The files of a repository that make up its pipeline, or its UNet where there are no `components`."""
    beside = sorted({name.rpartition("/")[0] for name in sizes if name.startswith(BESIDE)})
    folders = [f"{name}/" for name in (*components, *beside)] if components else [""]
    needed = [name for name in sizes if components and "/" not in name and name.endswith(".json")]
    for folder in folders:
        names = [name.removeprefix(folder) for name in sizes if name.startswith(folder)]
        inside = [name for name in names if "/" not in name]
        chosen = [_chosen(by_variant(inside, stem)) for stem in STEMS]
        unsafe = [name for name in inside if Path(name).suffix in UNSAFE]
        if CONFIG in inside and unsafe and not any(chosen):
            raise ModelError(
                f"{repository}: {folder}{unsafe[0]}: pickled weights are not fetched, because loading them can run "
                f"code; use a model with safetensors, or {CONVERT}"
            )
        small = [each for each in inside if Path(each).suffix in TEXTS and not INDEX_OF_SHARDS.search(each)]
        needed += [f"{folder}{each}" for each in (*small, *chosen[0], *chosen[1])]
    return needed


def _chosen(files: Mapping[str, list[str]]) -> list[str]:
    """Of the files of all variants those that count."""
    whole = {word: each for word, each in files.items() if any(name.endswith(".safetensors") for name in each)}
    word = preferred(list(whole))
    return whole[word] if word is not None else []


def _no_model(name: str, files: list[str]) -> str:
    from huggingface_hub import constants

    single = next((file for file in files if file.endswith(".safetensors")), None)
    way = f"give {constants.ENDPOINT}/{name}/blob/main/{single}" if single else "use one with a diffusers model"
    return f"{name}: has neither {INDEX} nor {CONFIG}; {way}"


def _file_on_hub(address: _Address, text: str) -> ModelDirectory:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from asdm_cli.models.from_single_file import from_single_file

    asked = {"repo_id": address.name, "filename": address.file, "revision": address.revision}
    place = try_to_load_from_cache(**asked)
    if not isinstance(place, str):
        with _in_words(address.name, address.revision), _bars():
            place = hf_hub_download(**asked)
    return from_single_file(Path(place), text)


@contextmanager
def _bars() -> Iterator[None]:
    """The hub's own bars, where somebody sees them."""
    from huggingface_hub import utils

    seen = console.is_terminal and not console.quiet and is_first()
    if seen or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _in_words(name: str, revision: str) -> Iterator[None]:
    """What goes wrong between here and the hub, with a way out."""
    from huggingface_hub import constants, errors

    page, again = f"{constants.ENDPOINT}/{name}", "give the same command again: what was fetched is kept"
    ways: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, f"is given only to those who accept its terms; do that on {page}, then {_TOKEN}"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r}; see {page}/tree/main for those that it has"),
        (
            errors.RepositoryNotFoundError,
            f"no such directory here, and no such model on {constants.ENDPOINT}; correct the name, or if the model is "
            f"private, {_TOKEN}",
        ),
    )
    try:
        with explained(Path(constants.HF_HUB_CACHE)):
            yield
    except AsdmError:
        raise
    except Exception as error:
        if way := next((way for kind, way in ways if isinstance(error, kind)), None):
            raise ModelError(f"{name}: {way}") from None
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise ModelError(f"{name}: has no such file; see {page}/tree/main for those that it has") from None
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{name}: is no directory here and not (or not whole) in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE "
                "forbids to fetch it; unset that, or give the path of a copy"
            ) from None
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise RunError(
            f"{name}: is no directory here, and {constants.ENDPOINT} does not give it ({why}); look after the network "
            f"or HF_ENDPOINT, and {again}"
        ) from None


_TOKEN = "set HF_TOKEN or call `hf auth login`"
