"""`asdm schema [VERB]`: JSON Schema of the recipes, or their reference to read."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from asdm_cli.commands.options import examples
from asdm_cli.progress import hand_over
from asdm_cli.recipe.messages import did_you_mean, one_of
from asdm_cli.recipe.reference import json_schema, markdown
from asdm_cli.recipe.verbs import VERBS


def _known(verb: str | None) -> str | None:
    if verb is not None and verb not in VERBS:
        raise typer.BadParameter(f"must be {one_of(list(VERBS))}, got '{verb}'{did_you_mean(verb, list(VERBS))}")
    return verb


Verb = Annotated[
    str | None,
    typer.Argument(metavar="VERB", help=f"One of {', '.join(VERBS)}; all of them if left out.", callback=_known),
]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print the same for people: every key, its values, its default.")
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "asdm schema > recipe.schema.json",
            "# then, as the first line of a recipe, for editors with the YAML language server:",
            "# yaml-language-server: $schema=recipe.schema.json",
            "# for people",
            "asdm schema prune --markdown",
        )
    )(schema)


def schema(verb: Verb = None, as_markdown: Markdown = False) -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    if as_markdown:
        hand_over(markdown(verb).removesuffix("\n"))
    else:
        hand_over(json.dumps(json_schema(verb), indent=2))
