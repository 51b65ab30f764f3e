"""Processes that were started together know of each other, also without a GPU."""

from __future__ import annotations

from pathlib import Path

from tests.forking import ours, together

CODE = """
import torch
from asdm_cli.sampling.generate import PATIENCE, processes
state = processes()
group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
print(state.process_index, state.num_processes, state.is_main_process, group.options._timeout == PATIENCE)
state.wait_for_everyone()  # or the first one may be gone while the other is still looking for it
"""


def test_two_processes_know_of_each_other() -> None:
    told = ours(CODE, cwd=Path.cwd(), environments=together(2))
    assert [each.code for each in told] == [0, 0], told
    assert [each.out.split() for each in told] == [["0", "2", "True", "True"], ["1", "2", "False", "True"]]
