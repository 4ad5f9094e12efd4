"""Runs scripts in forks of a process that has imported torch already: real processes, without the wait for imports.

Reads requests from stdin, a JSON object a line, and answers each with a line on stdout:

    script or code, args, cwd, stdout and stderr (files), processes (how many, as torchrun would start them),
    session (whether it gets one of its own), limits (of resources, by name)      the process ids, as a JSON list
    wait (a process id), block (whether to wait)                                  its exit status, or null

Nothing of the project is imported here but in the children, so every script starts afresh.
"""

import atexit
import json
import os
import runpy
import signal
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(request["cwd"])
    for number, name in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["session"]:
        os.setsid()
    if request["limits"]:
        import resource

        for name, limit in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
    script = request["script"]
    sys.argv = [script or "-c", *request["args"]]
    sys.path[0] = os.path.dirname(script or "") or str(SRC)  # noqa: PTH120  as the interpreter sets it
    sys.path.insert(1, str(SRC))
    status = 0
    try:
        tiny.register(default=True)
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            exec(compile(request["code"], "code", "exec"), {"__name__": "__main__"})  # noqa: S102
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
        if "wait" in request:
            child, ended = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(ended) if child else None), flush=True)
            continue
        children = []
        for variables in job(request["processes"]):
            children.append(os.fork())
            if children[-1] == 0:
                os.environ.update({name: str(value) for name, value in variables.items()})
                run(request)
        print(json.dumps(children), flush=True)


if __name__ == "__main__":
    main()
