"""`asdm`: one function per command, whose docstring is its help page, and the one place where errors become messages
and exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asdm_cli import __version__, console
from asdm_cli.console import hand_over, is_first, note, say
from asdm_cli.errors import AsdmError, Fault, ModelError, RecipeError
from asdm_cli.recipe import LARGEST_SEED, MOST

log = logging.getLogger("asdm")
app = typer.Typer(
    name="asdm",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


option = partial(typer.Option, show_default=False)
argument = partial(typer.Argument, show_default=False)

Device = Annotated[
    str | None, option("--device", metavar="NAME", help="Run on [bold]cpu[/], [bold]cuda[/], [bold]cuda:1[/], ...")
]
Dtype = Annotated[
    str | None, option("--dtype", metavar="NAME", help="[bold]float32[/], [bold]bfloat16[/] or [bold]float16[/].")
]
Overwrite = Annotated[bool, option("--overwrite", help="Replace what asdm wrote there before.")]
Verbose = Annotated[bool, option("--verbose", "-v", help="Show libraries' warnings, and tracebacks of bugs.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="Print nothing but errors and the result's path.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Prompt i is drawn with a seed made of this and i.")]


def _options_of_verbs(
    given: Annotated[list[str], argument(metavar="FILE", help="The recipe, a YAML file.")],
    set_: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace one value of the recipe, as in [bold]models.0.name=teacher[/]. May be given again.",
        ),
    ] = None,
    out: Annotated[
        str | None, option("--out", metavar="DIR", help="Write here instead of the recipe's [bold]out[/].")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    remove: Annotated[
        list[str] | None,
        option(
            "--remove",
            metavar="SET",
            help="[bold]base[/], [bold]small[/], [bold]tiny[/] or an address. May be given again.",
        ),
    ] = None,
    plan: Annotated[
        str | None, option("--plan", metavar="NAME", help="A plan by its name, as in [bold]deepcache[/].")
    ] = None,
    target: Annotated[
        str | None,
        option("--target", metavar="TARGET", help="Find a plan: [bold]2x[/] as fast, or at least [bold]35dB[/]."),
    ] = None,
    minutes: Annotated[
        float | None,
        option("--minutes", metavar="N", help="Begin nothing new in the search for a target after so many; 10."),
    ] = None,
    measure: Annotated[
        bool | None,
        option("--measure/--no-measure", help="Draw and time beside fewer steps, or only write the model."),
    ] = None,
    sampler: Annotated[
        str | None, option("--sampler", metavar="NAME", help="[bold]own[/], [bold]ddim[/], [bold]dpm++2m[/], ...")
    ] = None,
    steps: Annotated[int | None, option("--steps", metavar="N", help="UNet steps per picture.")] = None,
    guidance: Annotated[
        float | None, option("--guidance", metavar="W", help="Classifier-free guidance; 1 is none.")
    ] = None,
    prompts: Annotated[str | None, option("--prompts", metavar="FILE", help="A prompt a line, or shards.")] = None,
    inputs: Annotated[
        str | None, option("--inputs", metavar="DIR", help="Pictures to draw from, captions and masks beside them.")
    ] = None,
    limit: Annotated[int | None, option("--limit", metavar="N", help="Use the first so many prompts.")] = None,
    metrics: Annotated[
        list[str] | None,
        option("--metrics", metavar="NAME", help="[bold]psnr[/], [bold]kid[/], ... May be given again."),
    ] = None,
    repeats: Annotated[int | None, option("--repeats", metavar="N", help="Timed rounds.")] = None,
    size: Annotated[int | None, option("--size", metavar="PIXELS", help="Height and width.")] = None,
    launch: Annotated[
        str,
        option(
            "--launch",
            metavar="COMMAND",
            help="Start distill, eval, inherit and switch with this, as in "
            '[bold]"torchrun --nproc-per-node 2"[/] or [bold]"accelerate launch"[/].',
        ),
    ] = "",
    allow_pipes: Annotated[
        bool,
        option("--allow-pipes", help="Let the recipe's [bold]pipe:[/] data sources run their shell commands here."),
    ] = False,
    link: Annotated[
        bool,
        option("--link", help="Unchanged weights as hard links to the source's files: a change of one changes both."),
    ] = False,
    dry_run: Annotated[
        bool, option("--dry-run", help="Check everything, say what and how long it would be, and stop.")
    ] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """A signature: what can be typed after `asdm VERB`, in the order of the help pages."""


OF_ALL = {"set_", "out", "dry_run", "overwrite", "verbose", "quiet"}
"""Options of every verb; the others a verb has only if it says so."""
DRAWING = ("sampler", "steps", "guidance", "size", "prompts", "inputs", "limit", "metrics")
OR_MODELS = {
    count: Annotated[list[str], argument(metavar=f"FILE|{count}", help="The recipe, or in its place what it is about.")]
    for count in ("MODEL", "MODEL...")
}


def page(function: Callable[..., None]) -> dict[str, str]:
    """The help page in a function's docstring, in which lines to type follow a line `Examples`."""
    text, _, examples = (inspect.getdoc(function) or "").partition("\n\nExamples\n")
    shown = (f"[dim]{each}[/]" if each.startswith("#") else f"  [cyan]{each}[/]" for each in examples.splitlines())
    return {"help": text, "epilog": "\n".join(["[bold]Examples[/]", *shown])}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command that is called like the function."""
    app.command(_name(function), **page(function))(function)  # type: ignore[arg-type]
    return function


def verb(*own: str, models: str = "") -> Callable[[Callable[[], None]], Callable[..., None]]:
    """A command that runs a recipe. All verbs run alike; the function is only the help page, `own` its options, and
    `models` what may stand in the recipe's place."""
    options = inspect.signature(_options_of_verbs, eval_str=True)
    first, *others = options.parameters.values()
    taken = [first.replace(annotation=OR_MODELS.get(models, first.annotation))]
    taken += [each for each in others if each.name in OF_ALL or each.name in own]

    def register(function: Callable[[], None]) -> Callable[..., None]:
        def run(verbose: bool, quiet: bool, **given: Any) -> None:
            set_verbosity(verbose, quiet)
            from asdm_cli.verbs import run_verb

            run_verb(_name(function), **given)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = options.replace(parameters=taken)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in taken}
        return command(run)

    return register


def _name(function: Callable[..., None]) -> str:
    return function.__name__.strip("_").replace("_", "-")


def set_verbosity(verbose: bool, quiet: bool = False) -> None:
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    console.quiet(quiet or not is_first())
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not verbose:
        warnings.simplefilter("ignore")
        for library in ("DIFFUSERS", "TRANSFORMERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")


@verb("link", "remove", models="MODEL")
def prune() -> None:
    """Remove blocks or layers from a UNet.

    Writes a run directory whose [bold]model/[/] plain diffusers loads.
    Weights go from file to file: a model larger than memory is no trouble.

    Examples
    asdm prune pocket --remove base
    # the same from a file, another set, another place
    asdm prune recipes/prune-pocket-base.yaml --remove small --out runs/small
    # what would be removed, and what is left
    asdm prune recipes/prune-pocket-base.yaml --dry-run
    """


@verb("link")
def assemble() -> None:
    """Put a UNet together from levels, blocks or layers of several.

    Writes a run directory whose [bold]model/[/] plain diffusers loads, weights copied
    from file to file. With [bold]explore[/] in the recipe it measures many combinations
    and ranks them, and goes on where an interrupted run stopped.

    Examples
    asdm assemble recipes/assemble-pocket-1122.yaml
    # other donors for the levels, from fine to coarse
    asdm assemble recipes/assemble-pocket-1122.yaml --set levels=[base,base,base,original] --out runs/1112
    # what would come from where, and nothing else
    asdm assemble recipes/assemble-pocket-1122.yaml --dry-run
    # all combinations under a budget, ranked
    asdm assemble recipes/assemble-pocket-explore.yaml
    """


@verb("device", "allow_pipes", "link")
def distill() -> None:
    """Train smaller UNets against the original.

    Task, output and feature losses, for one student or several that share
    the teacher's work. Pictures and captions are encoded once and kept.
    Stopped at any moment, the same command goes on from the last checkpoint
    to the same weights. Each student becomes a [bold]model/[/].

    Examples
    asdm distill recipes/distill-pocket-base.yaml
    # who learns what from which nodes, and what is known of the data
    asdm distill recipes/distill-pocket-base.yaml --dry-run
    # on all GPUs of a machine
    accelerate launch -m asdm_cli distill recipes/distill-sd15-base.yaml --set teacher=PATH
    """


@verb("device", "dtype", "link")
def condconv_expand() -> None:
    """Give convolutions several experts, or fold them again.

    A convolution gets several kernels, each for a stretch of the timesteps.
    The written model draws what it drew before; [bold]asdm distill[/] then teaches
    it to use its experts. Stock diffusers refuses such a model, [bold]asdm_cli.load[/]
    reads it, and [bold]fold[/] in the recipe makes it a plain one.

    Examples
    asdm condconv-expand recipes/condconv-pocket-base.yaml
    # more experts, and what that means, but nothing written
    asdm condconv-expand recipes/condconv-pocket-base.yaml --set expand.experts=8 --dry-run
    # after distilling: a plain model again, which stock diffusers loads
    asdm condconv-expand recipes/condconv-pocket-fold.yaml
    """


@verb("device", "dtype", "link", "plan", "target", "minutes", "measure", *DRAWING, "repeats", models="MODEL")
def inherit() -> None:
    """Compute less at some steps, without training.

    The features of chosen blocks, layers or units are inherited from earlier
    steps, or forecast from them. Writes a [bold]model/[/] that carries the plan, and
    says what it gains in speed and loses in fidelity, beside fewer steps. A model in
    the recipe's place is written in seconds, with a plan that was measured elsewhere.

    Examples
    asdm inherit pocket
    # another plan; and what it gains and loses
    asdm inherit pocket --plan deepcache --measure --out runs/deepcache
    # find the plan that draws nearest at twice the speed, for this model
    asdm inherit pocket --target 2x --out runs/twice
    asdm inherit recipes/inherit-pocket-block.yaml
    # what each UNet call would compute, and nothing else
    asdm inherit recipes/inherit-pocket-block.yaml --dry-run
    # your own model
    asdm inherit recipes/inherit-sd15-block.yaml --set model=PATH --out runs/mine
    """


@verb("device", "dtype", "link", "measure")
def switch() -> None:
    """Let several UNets take turns in one generation.

    Each serves a part of it, from pure noise to the picture: by a schedule of
    yours, or by one that a [bold]search[/] finds within a budget of time. Writes a
    [bold]model/[/] that switches by itself, and says what schedules gain in speed and
    lose in fidelity, beside fewer steps.

    Examples
    asdm switch recipes/switch-pocket-base.yaml
    # who would serve what, and nothing else
    asdm switch recipes/switch-pocket-base.yaml --dry-run
    # find the best schedules within budgets of time
    asdm switch recipes/switch-pocket-search.yaml
    """


@verb("device", "dtype", "sampler", "steps", "size", "inputs", "repeats", models="MODEL...")
def bench() -> None:
    """Measure what models cost, side by side.

    Parameters, multiply-adds, latency and peak memory. Contestants take
    turns, so that a machine that slows down slows all of them down.

    Examples
    asdm bench pocket runs/inherit-pocket
    # from a file
    asdm bench recipes/bench-pocket.yaml
    # on a GPU, more rounds
    asdm bench recipes/bench-pocket.yaml --device cuda --set repeats=50
    """


@verb("device", "dtype", *DRAWING, models="MODEL...")
def eval_() -> None:
    """Measure what models' pictures are worth.

    Every contestant draws the same prompts with the same seeds. The same
    command given again after an interruption goes on where it stopped.

    Examples
    asdm eval recipes/eval-pocket.yaml
    # a quick look at 64 prompts, without a file
    asdm eval pocket runs/inherit-pocket --limit 64 --metrics psnr --out runs/eval-quick
    # several processes draw the same pictures, faster
    accelerate launch -m asdm_cli eval recipes/eval-pocket.yaml
    """


@verb("launch", "allow_pipes", "link")
def run() -> None:
    """Run several recipes, each made from what earlier ones wrote.

    A file with [bold]stages[/]: prune, distill, measure ... Finished stages do not
    run again unless what they are made from has changed; stopped at any
    moment, the same command goes on. One report shows cost and quality
    after each stage.

    Examples
    asdm run recipes/tables/table1.yaml
    # what is finished, what would run, and whether it could
    asdm run recipes/tables/table1.yaml --dry-run
    # your own model; the stages that share work on two processes
    asdm run recipes/tables/table1.yaml --set inputs.model=PATH --launch "torchrun --nproc-per-node 2"
    """


@command
def init(
    verb: Annotated[str, argument(metavar="VERB", help="The verb that the recipe is for.")],
    model: Annotated[
        str | None, option("--model", metavar="MODEL", help="Your model, in the place of the bundled one.")
    ] = None,
    out: Annotated[Path | None, option("--out", metavar="FILE", help="Write here instead of VERB.yaml.")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a recipe to start from.

    The verb's example, then every other key with what it means and its default.

    Examples
    asdm init switch --model pocket
    # then
    asdm switch switch.yaml --dry-run
    """
    set_verbosity(verbose)
    from asdm_cli.recipe.messages import choice
    from asdm_cli.recipe.starter import starter
    from asdm_cli.recipe.verbs import VERBS

    if verb not in VERBS:
        raise typer.BadParameter(choice(list(VERBS), verb), param_hint="VERB")
    target = out or Path(f"{verb}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(starter(verb, model))
    except FileExistsError:
        raise RecipeError(str(target), [Fault("is there already; choose another --out")]) from None
    except OSError as error:
        raise RecipeError(str(target), [Fault(f"cannot be written ({error.strerror}); choose another --out")]) from None
    hand_over(target)


@command
def generate(
    model: Annotated[
        str,
        argument(
            metavar="MODEL",
            help="A model, as recipes name it: a directory, ORG/NAME of the hub, [bold]pocket[/] ...",
        ),
    ],
    prompts: Annotated[list[str], argument(metavar="PROMPT", help="One picture each.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pictures go.")] = Path("runs/generate"),
    sampler: Annotated[
        Literal["own", "ddim", "pndm", "euler", "heun", "dpm++2m", "unipc"] | None,
        option("--sampler", help="[bold]own[/] is the one that the model came with."),
    ] = None,
    steps: Annotated[int | None, option("--steps", min=1, max=MOST, help="UNet steps per picture.")] = None,
    guidance: Annotated[
        float | None, option("--guidance", min=1.0, max=1000.0, help="Classifier-free guidance; 1 is none.")
    ] = None,
    size: Annotated[
        int | None,
        option("--size", min=8, max=1 << 14, help="Height and width in pixels; left out, the model's."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        option("--lora", metavar="FILE[:SCALE]", help="A LoRA in the weights; give it again for another one."),
    ] = None,
    negative: Annotated[str, option("--negative", metavar="PROMPT", help="What guidance leads away from.")] = "",
    image: Annotated[Path | None, option("--image", metavar="FILE", help="The picture to draw from.")] = None,
    mask: Annotated[
        Path | None, option("--mask", metavar="FILE", help="White where to paint, as large as the picture.")
    ] = None,
    strength: Annotated[
        float | None,
        option("--strength", min=0.0, max=1.0, help="Share of the steps that are made, from the picture on."),
    ] = None,
    image_guidance: Annotated[
        float | None,
        option("--image-guidance", min=1.0, max=1000.0, help="How near InstructPix2Pix keeps to the picture."),
    ] = None,
    batch: Annotated[
        int,
        option("--batch", min=1, max=1024, help="Pictures at once: fewer take less memory, more are faster on a GPU."),
    ] = 8,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from prompts.

    Writes 000.png, 001.png, ... and a contact sheet. Each prompt has a seed
    of its own, made of --seed and its place in the list, so two models draw
    the same prompts from the same noise. Sampler, steps and guidance that are
    left out are those that the model was measured with, or its pipeline's own.

    Examples
    asdm generate pocket "a fox, noto style" "a red apple" --out runs/fox
    # the pruned model, the same seeds
    asdm generate runs/prune-pocket-base "a fox, noto style" "a red apple" --out runs/fox-base
    # inpainting, image to image, editing ...: from a picture
    asdm generate MODEL "a fox" --image photo.png --mask mask.png --out runs/painted
    """
    set_verbosity(verbose, quiet)
    from asdm_cli.commands.generate import generate

    settings: dict[str, Any] = {"model": model, "sampler": sampler, "steps": steps, "guidance": guidance, "size": size}
    settings |= {"negative": negative, "seed": seed, "lora": lora or []}
    settings |= {"image": image, "mask": mask, "strength": strength, "image_guidance": image_guidance}
    generate(prompts, out, settings, (device or "auto", dtype or "auto"), batch, overwrite)


@command
def pack(
    folder: Annotated[Path, argument(metavar="FOLDER", help="Pictures, at any depth.")],
    out: Annotated[Path, option("--out", metavar="DIR", help="Where the shards go.")],
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, max=MOST, help="Samples per shard.")] = 2000,
    shuffle: Annotated[bool, option("--shuffle", help="Mix the samples instead of keeping them by name.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The order that --shuffle mixes them into.")] = 0,
    strict: Annotated[bool, option("--strict", help="Write nothing if anything cannot be used.")] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Pack a folder of pictures with captions into shards.

    A caption is name.txt beside the picture, or a row of metadata.jsonl,
    metadata.csv or captions.csv (file_name, and text or caption). Writes
    00000.tar, 00001.tar, ... and pack.json, which lists what was left out.
    Pictures (png, jpg, jpeg, webp) keep their bytes.

    Examples
    asdm pack photos --out data/photos
    # then, in a recipe: train: data/photos/*.tar
    asdm pack photos --out data/photos --shard-size 500 --shuffle --strict
    """
    set_verbosity(verbose, quiet)
    from asdm_cli.data.pack import pack
    from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources

    if not is_first():
        return
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such directory; give the folder of pictures")
    refuse_existing(out, overwrite)
    refuse_sources(out, [folder])
    with atomic_directory(out.resolve(), overwrite) as shards:
        counts, faults = pack(folder, shards, shard_size, seed if shuffle else None, strict)
    if faults.total():
        note(f"{faults.listed()}\nleft out: {faults.summary()}")
    note(f"{sum(counts)} samples in {len(counts)} shards")
    hand_over(out)


@command
def export(
    model: Annotated[str, argument(metavar="MODEL|RUN", help="A model directory, a run directory or [bold]pocket[/].")],
    to: Annotated[
        Literal["single-file", "diffusers"],
        option("--to", help="One file, as ComfyUI and A1111 read it, or a directory, as diffusers does."),
    ],
    unet_only: Annotated[bool, option("--unet-only", help="A file of the UNet without VAE and text encoder.")] = False,
    dtype: Dtype = None,
    fp16: Annotated[bool, option("--fp16", help="The same as --dtype float16.")] = False,
    plain: Annotated[
        bool, option("--plain", help="Leave out what the model carries besides weights: plans, UNets that take turns.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/export"),
    push: Annotated[
        str | None, option("--push", metavar="ORG/NAME", help="Also send it to the hub, with its model card.")
    ] = None,
    private: Annotated[bool, option("--private", help="A repository that --push makes is for you alone.")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Say what would be written and sent, and stop.")] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a model for other programs, or send it to the hub.

    A single file has the layout of the original code. Beside it lie a model card, and the
    configurations that [bold]from_single_file[/] of diffusers needs. Who cannot read the file, and
    what else they need, is said before anything is written.

    Examples
    asdm export pocket --to single-file --out runs/export
    # a pruned model in half the bytes, and who could read it
    asdm export runs/prune-pocket-base --to single-file --fp16 --dry-run
    # a directory in half the bytes; a plan of inheritance goes with it
    asdm export runs/prune-pocket-base --to diffusers --fp16 --out runs/export-fp16
    """
    set_verbosity(verbose, quiet)
    if fp16 and dtype not in (None, "float16"):
        raise typer.BadParameter(f"--fp16 and --dtype {dtype} contradict each other", param_hint="--fp16")
    from asdm_cli.commands.export import export

    how = {
        "unet_only": unet_only,
        "dtype": "float16" if fp16 else dtype,
        "plain": plain,
        "push": push,
        "private": private,
    }
    export(model, to, out, how, overwrite, dry_run)


@command
def check(
    files: Annotated[list[Path], argument(metavar="FILE", help="Recipes of any verb.")],
    verbose: Verbose = False,
) -> None:
    """Check recipes without running them.

    Every fault is printed with its file, line and column. Of models, those
    that are there are asked for the addresses that a recipe names;
    [bold]asdm VERB FILE --dry-run[/] looks at all else too.

    Examples
    asdm check recipes/*.yaml
    """
    set_verbosity(verbose)
    from asdm_cli.models.addressed import unknown_addresses
    from asdm_cli.recipe.load import load

    wrong = 0
    for file in files:
        try:
            hand_over(f"{file}: OK, a recipe for asdm {load(file, look=unknown_addresses).verb}")
        except RecipeError as error:  # the one error caught outside of main(): the next file is to be checked too
            say(str(error))
            wrong += 1
    if wrong:
        raise typer.Exit(RecipeError.exit_code)


@command
def show(
    sources: Annotated[
        list[str],
        argument(
            metavar="MODEL|RUN...",
            help="A run directory shows its report; any model, as recipes name it, its components and UNet.",
        ),
    ],
    shape: Annotated[
        Literal["csv", "markdown", "latex"] | None,
        option("--format", help="Print every record (csv), or the main table, for other programs."),
    ] = None,
    page: Annotated[
        Path | None,
        option(
            "--out",
            metavar="PAGE",
            help="Write their reports as one page instead: .html, .md, or .pdf (the plots).",
        ),
    ] = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Show what a model is made of, or what a run found out.

    A UNet is shown as the tree of its addresses, each with its parameters.
    Several runs are put together, on a page or for other programs: set-ups of
    one model that draw in one way are one row.

    Examples
    # the components of a model, and the addresses that a recipe's remove: may name
    asdm show pocket
    # the figures of a run
    asdm show runs/bench-pocket
    # the model that a run wrote
    asdm show runs/prune-pocket-base/model
    # all of them for other programs, or the main table for a paper
    asdm show runs/bench-pocket --format csv
    # what models cost and what their images are worth, on one page
    asdm show runs/bench-pocket runs/eval-pocket --out runs/page.html
    # the same for a repository, with the recipes' digests
    asdm show runs/bench-pocket runs/eval-pocket --out runs/page.md
    # the plots for a paper, one on each page
    asdm show runs/bench-pocket runs/eval-pocket --out runs/plots.pdf
    """
    set_verbosity(verbose)
    from asdm_cli.commands.show import show

    show(sources, shape, page, overwrite)


@command
def schema(
    verb: Annotated[str | None, typer.Argument(metavar="VERB", help="All of them if left out.")] = None,
    as_markdown: Annotated[
        bool, option("--markdown", help="Print the same for people: every key, its values, its default.")
    ] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML.

    Examples
    asdm schema > recipe.schema.json
    # then, as the first line of a recipe, for editors with the YAML language server:
    # yaml-language-server: $schema=recipe.schema.json
    # for people
    asdm schema prune --markdown
    """
    from asdm_cli.recipe.messages import choice
    from asdm_cli.recipe.reference import json_schema, markdown
    from asdm_cli.recipe.verbs import VERBS

    if verb is not None and verb not in VERBS:
        raise typer.BadParameter(choice(list(VERBS), verb), param_hint="VERB")
    hand_over(markdown(verb).removesuffix("\n") if as_markdown else json.dumps(json_schema(verb), indent=2))


def _print_version(wanted: bool) -> None:
    if wanted:
        hand_over(f"asdm {__version__}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool, option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Make Stable Diffusion smaller and faster, and measure what that costs.

    A [bold]verb[/] reads one recipe (YAML) and writes one run directory: the recipe
    as resolved, report.json, report.html and, where a model comes out, model/:
    a plain diffusers directory. What one verb writes, every other verb reads.

    stdout is the path of what was written; everything else goes to stderr.
    Exit codes: 0 done, 2 the recipe or the arguments are wrong, 1 the run failed.

    Examples
    # prune the bundled model to BK-SDM Base, then compare the two
    asdm prune recipes/prune-pocket-base.yaml
    asdm bench recipes/bench-pocket.yaml
    # draw with the result
    asdm generate runs/prune-pocket-base "a fox" "a red apple"
    """


app.callback(**page(_options))(_options)  # type: ignore[arg-type]


INTERRUPTED = 130
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG)
"""Refusals of the operating system that the person in front of it can do something about."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own if None) and return the exit code. Raises nothing."""
    code: object = 0
    try:
        _commands()(
            args=[_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)], prog_name="asdm"
        )
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except AsdmError as error:
        # What the user got wrong every process finds alike; what fails in one process only that one can tell.
        if is_first() or error.exit_code != 2:
            say(str(error))
        return error.exit_code
    except Exception as error:
        say(_machine_trouble(error) or f"this is a bug in asdm ({type(error).__name__}: {error}); -v shows where")
        if log.isEnabledFor(logging.DEBUG):
            say("".join(traceback.format_exception(error)))
        return 1
    finally:
        console.quiet(False)  # -q was for this command line
    if code == INTERRUPTED:
        say("interrupted; give the same command again")
    return code if isinstance(code, int) else 0


def _at_home(word: str) -> str:
    """Of `--out=~/x` no shell expands the `~`."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and re.fullmatch(r"--[\w-]+", option) else word  # noqa: PTH111


@cache
def _commands() -> Callable[..., Any]:
    return typer.main.get_command(app)


def _machine_trouble(error: Exception) -> str:
    from asdm_cli.models.write import way_out

    if isinstance(error, OSError) and error.errno in MACHINE:
        way = way_out(error.errno, error.filename)
        what = f"{way} ({error.strerror})" if way else error.strerror
        return f"{error.filename or 'the machine'}: {what}"
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "DefaultCPUAllocator" in str(error):  # torch has no kind of its own for the CPU's
        return "out of memory; try a smaller batch, a smaller size, or --dtype float16 on a GPU"
    lost = type(error).__name__.startswith("Dist") or "gloo/" in str(error)  # gloo's have no kind of their own
    if isinstance(error, RuntimeError) and lost and os.environ.get("WORLD_SIZE", "1") != "1":
        return (
            "another process of this run ended or cannot be reached, and its own messages say why; "
            "then start the same command again"
        )
    return ""
