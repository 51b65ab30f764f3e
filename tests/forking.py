"""Processes of their own for code that needs one, forked from one that has imported the libraries, which takes long."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.typed import Said

PLAIN = """
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""
"""In a process that never sees this package."""
OURS = "import asdm_cli.verbs.compare, asdm_cli.training.loop, asdm_cli.experts.unet"
SERVER = """
import json, os, signal, sys, traceback
import torch

torch.set_num_threads(1)


def serve(asked):
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    for number, file in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *asked["arguments"]]
    signal.alarm(240)
    exec(compile(asked["code"], "<asked>", "exec"), {"__name__": "__main__"})


def child(asked):
    status = 1
    try:
        serve(asked)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for line in sys.stdin:
    children = [os.fork() or child(asked) for asked in json.loads(line)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]), flush=True)
"""


@cache
def _server(imports: str) -> subprocess.Popen[str]:
    """It ends when these tests do, and its stdin with them."""
    isolated = ["-I"] if imports == PLAIN else []
    command = [sys.executable, *isolated, "-c", imports + SERVER]
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.Popen(command, env=quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def plain(code: str, *arguments: object, cwd: Path) -> Said:
    """What code says that knows nothing of this package."""
    return _run(PLAIN, code, arguments, cwd, [{}])[0]


def ours(code: str, *arguments: object, cwd: Path, environments: Sequence[Mapping[str, str]] = ({},)) -> list[Said]:
    """What it says in processes that run at the same time, one for each environment."""
    return _run(OURS, code, arguments, cwd, environments)


def together(count: int) -> list[dict[str, str]]:
    """The environments of so many processes that know of each other, as torchrun sets them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _run(
    imports: str, code: str, arguments: Sequence[object], cwd: Path, environments: Sequence[Mapping[str, str]]
) -> list[Said]:
    with TemporaryDirectory() as folder:
        files = [
            (Path(folder) / f"{number}.out", Path(folder) / f"{number}.err") for number in range(len(environments))
        ]
        asked = {"code": code, "arguments": [str(each) for each in arguments], "cwd": str(cwd)}
        wanted = [
            {**asked, "environment": dict(environment), "out": str(out), "err": str(err)}
            for environment, (out, err) in zip(environments, files, strict=True)
        ]
        codes = json.loads(_answer(_server(imports), json.dumps(wanted)))
        told = [(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, files, strict=True)]
    return [Said(*each) for each in told]


def _answer(server: subprocess.Popen[str], line: str) -> str:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(line + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the process that others are forked from has ended"
    return answer
