"""The rules of the house, read from its source: one-way imports, no foreign code, a quiet cellar."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "asdm_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    {"errors", "records"},
    {"console"},
    {"recipe"},
    {"unet", "experts"},
    {"patches"},
    {"models"},
    {"data", "profiling"},
    {"sampling"},
    {"metrics"},
    {"training", "compare"},
    {"search"},
    {"report"},
    {"verbs"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""Lowest first. A room uses rooms of lower floors, and on its own floor only itself."""
TOGETHER = {"unet", "experts"}
"""Rooms of one floor that use each other: experts stand in a UNet, and what a UNet costs is counted with its experts.
File by file that is one-way too."""
NO_TORCH = (
    "asdm_cli",
    "asdm_cli.cli",
    "asdm_cli.recipe.load",
    "asdm_cli.recipe.reference",
    "asdm_cli.verbs",
    "asdm_cli.report.page",
    "asdm_cli.report.join",
    "asdm_cli.report.terminal",
    "asdm_cli.unet.addresses",
    "asdm_cli.unet.surgery",
    "asdm_cli.unet.assembly",
    "asdm_cli.unet.dataflow",
    "asdm_cli.unet.weights",
    "asdm_cli.compare.pareto",
    "asdm_cli.search.dynamic_programme",
    "asdm_cli.models.addressed",
    "asdm_cli.models.directory",
    "asdm_cli.models.write",
    "asdm_cli.models.metadata",
    "asdm_cli.verbs.unmeasured",
)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(height for height, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of ours that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.startswith("asdm_cli"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "asdm_cli":
                yield from ((f"asdm_cli.{alias.name}", node.lineno) for alias in node.names)
            elif (node.module or "").startswith("asdm_cli."):
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def allowed(user: str, used: str) -> bool:
    used_room = used.split(".")[1]
    if user == used_room or used_room == "__version__":
        return True
    return floor(used_room) < floor(user) or {user, used_room} <= TOGETHER


def test_the_source_is_there() -> None:
    assert len(SOURCES) >= 30
    assert {room(path) for path in SOURCES} <= {"__init__", *set().union(*FLOORS)}


def test_imports_go_one_way() -> None:
    seen, wrong = 0, []
    for path in SOURCES:
        for used, line in imports(path) if room(path) != "__init__" else ():
            seen += 1
            if not allowed(room(path), used):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {room(path)} uses {used}")
    assert seen >= 100, "the check saw the imports"
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in SOURCES}
    uses = {}
    for name, path in files.items():
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        uses[name] = {str(node.module) for node in top} & files.keys() - {name}
    assert sum(map(len, uses.values())) >= 100, "the check saw the imports"
    TopologicalSorter(uses).prepare()  # raises CycleError


def test_the_check_of_imports_sees_a_wrong_one() -> None:
    assert not allowed("recipe", "asdm_cli.unet.addresses")
    assert not allowed("compare", "asdm_cli.training.loop")
    assert not allowed("recipe", "asdm_cli.commands.show")


def test_few_files_know_of_experts() -> None:
    """What a UNet's experts are is the affair of one room."""
    users = {path for path in SOURCES if room(path) != "experts"
             if any(used.startswith("asdm_cli.experts.") for used, _ in imports(path))}  # fmt: skip
    assert 3 <= len(users) <= 7, sorted(users)


def test_one_module_opens_pictures() -> None:
    """Which formats, how large, on what ground: two readers would compare what was not learnt."""
    found = [path.relative_to(PACKAGE) for path in SOURCES if "Image.open(" in path.read_text()]
    assert [str(path) for path in found] == ["data/images.py"]


def test_nothing_is_loaded_that_may_run_code() -> None:
    """Each use of from_pretrained names safetensors. Configurations hold no weights; SAFELY is the settings by name."""
    seen, wrong = 0, []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            named = [each for each in (node.func, *node.args) if getattr(each, "attr", "") == "from_pretrained"]
            if not named or ast.unparse(named[0].value).endswith(("config_class", "CLIPTokenizer")):
                continue
            seen += 1
            settings = {each.arg or ast.unparse(each.value): ast.unparse(each.value) for each in node.keywords}
            if settings.get("use_safetensors") != "True" and "SAFELY" not in settings:
                wrong.append(f"{path}:{node.lineno}")
    assert seen >= 5, "the check saw the calls"
    assert not wrong


def test_text_leaves_the_program_in_one_place() -> None:
    """stdout belongs to the result's path."""
    seen, wrong = 0, []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                seen += 1
                if node.func.id == "print" and room(path) != "console":
                    wrong.append(f"{path}:{node.lineno}")
    assert seen >= 500, "the check saw the calls"
    assert not wrong


def test_light_modules_import_no_torch() -> None:
    """Of all of them together: `torch` would stay in memory."""
    code = f"import sys, {', '.join(NO_TORCH)}; print({NO_TORCH[-1]!r} in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_every_file_says_what_it_is() -> None:
    silent = [
        str(path) for path in SOURCES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_it_starts_where_a_unix_module_is_not() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; import asdm_cli.models.write; "
        "from asdm_cli.cli import main; sys.exit(main(['check']))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Missing argument 'FILE'" in done.stderr) == (2, True), done.stderr
