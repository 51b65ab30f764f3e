"""Processes that were started together know of each other, also without a GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

CODE = """
from asdm_cli.measure.processes import processes
state = processes()
print(state.process_index, state.num_processes, state.is_main_process)
"""


def test_two_processes_know_of_each_other() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            env=os.environ | together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [each.communicate(timeout=120)[0].split() for each in started] == [["0", "2", "True"], ["1", "2", "False"]]
