"""One recipe class per verb. Every key here changes what its verb does; a test holds us to it."""

from asdm_cli.recipe.schema import Strict
from asdm_cli.recipe.verbs.assemble import AssembleRecipe
from asdm_cli.recipe.verbs.bench import BenchRecipe, Contestant
from asdm_cli.recipe.verbs.comparing import Comparing
from asdm_cli.recipe.verbs.condconv import CondConvRecipe, Expand, Fold
from asdm_cli.recipe.verbs.distill import DistillRecipe
from asdm_cli.recipe.verbs.drawing import Drawing
from asdm_cli.recipe.verbs.evaluate import EvalContestant, EvalRecipe
from asdm_cli.recipe.verbs.inherit import InheritRecipe
from asdm_cli.recipe.verbs.prune import PruneRecipe
from asdm_cli.recipe.verbs.run import RunRecipe
from asdm_cli.recipe.verbs.switch import SwitchRecipe

__all__ = [
    "VERBS",
    "AssembleRecipe",
    "BenchRecipe",
    "Comparing",
    "CondConvRecipe",
    "Contestant",
    "DistillRecipe",
    "Drawing",
    "EvalContestant",
    "EvalRecipe",
    "Expand",
    "Fold",
    "InheritRecipe",
    "PruneRecipe",
    "RunRecipe",
    "SwitchRecipe",
]

VERBS: dict[str, type[Strict]] = {
    "prune": PruneRecipe,
    "distill": DistillRecipe,
    "assemble": AssembleRecipe,
    "condconv-expand": CondConvRecipe,
    "inherit": InheritRecipe,
    "switch": SwitchRecipe,
    "bench": BenchRecipe,
    "eval": EvalRecipe,
    "run": RunRecipe,
}
