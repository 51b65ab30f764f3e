"""How far one must walk to follow a verb: `python tests/walk.py FOLDER VERB...` writes FOLDER/VERB.json for each: the
package's functions that the run of FOLDER/VERB.yaml enters (comprehensions and lambdas aside) and their files."""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType

import asdm_cli.verbs.compare  # to import under the watch would take most of the time
import asdm_cli.verbs.inherit
import asdm_cli.verbs.prune
import asdm_cli.verbs.switch
from asdm_cli.cli import main

PACKAGE = f"{Path(asdm_cli.__file__).parent}/"


def walk(verb: str) -> dict[str, object]:
    """In a process of its own: what an earlier verb keeps in a cache would be entered no more."""
    entered: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        body = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and body and code.co_filename.startswith(PACKAGE):
            entered.add((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    threading.setprofile(watch)
    sys.setprofile(watch)
    status = main([verb, f"{verb}.yaml"])
    sys.setprofile(None)
    threading.setprofile(None)
    return {"verb": verb, "exit": status, "functions": len(entered), "files": len({file for file, _ in entered})}


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for verb in sys.argv[2:]:
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            found = walk(verb)
            Path(f"{verb}.json").write_text(json.dumps(found))
            os._exit(0)
