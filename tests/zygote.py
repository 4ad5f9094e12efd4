"""Runs scripts in forks of a process that has imported torch already: real processes, without the wait for imports.

Reads requests from stdin, a JSON object a line: script, args, cwd, stdout and stderr (files). Answers each with the
status of the process on a line of stdout. Nothing of the project is imported here, so every script starts afresh.
"""

import atexit
import json
import os
import runpy
import sys
import traceback

import matplotlib.pyplot  # noqa: F401
import torch.utils.data  # noqa: F401
import torchvision  # noqa: F401


def run(request: dict) -> None:
    """Becomes the script, in a child; never returns."""
    os.chdir(request["cwd"])
    for number, name in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [request["script"], *request["args"]]
    sys.path[0] = os.path.dirname(request["script"])  # noqa: PTH120  as the interpreter sets it
    status = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as leave:
        if leave.code is not None and not isinstance(leave.code, int):
            print(leave.code, file=sys.stderr)
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:  # noqa: BLE001  as the interpreter does with whatever a script does not catch
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
