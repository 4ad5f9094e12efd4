"""Runs scripts in forks of a process that has imported torch already: real processes, without the wait for imports.

Reads requests from stdin, a JSON object a line: script, args, cwd, stdout and stderr (files), processes (how many, as
torchrun would start them). Answers each with the status on a line of stdout: of the first process that failed, or 0.
Nothing of the project is imported here, so every script starts afresh.
"""

import atexit
import json
import os
import runpy
import socket
import sys
import traceback

import matplotlib.pyplot  # noqa: F401
import torch.utils.data  # noqa: F401
import torchvision  # noqa: F401

import tiny
from tiny import SRC


def run(request: dict) -> None:
    """Becomes the script, in a child; never returns."""
    os.chdir(request["cwd"])
    for number, name in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [request["script"], *request["args"]]
    sys.path[0] = os.path.dirname(request["script"])  # noqa: PTH120  as the interpreter sets it
    sys.path.insert(1, str(SRC))
    status = 0
    try:
        tiny.register(default=True)
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


def job(size: int) -> list[dict]:
    """The variables that torchrun sets, for each of `size` processes on this machine."""
    if size == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]


def main() -> None:
    """Answers requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for variables in job(request["processes"]):
            children.append(os.fork())
            if children[-1] == 0:
                os.environ.update({name: str(value) for name, value in variables.items()})
                run(request)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next(filter(None, ends), 0), flush=True)


if __name__ == "__main__":
    main()
