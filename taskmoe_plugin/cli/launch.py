"""``taskmoe launch``: fairseq-train on several processes, with GPUs or without."""

from __future__ import annotations

import os
import signal
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from taskmoe_plugin.cli.launched import BACKEND, PARENT
from taskmoe_plugin.errors import TaskMoEError, UsageError

COMMAND = "fairseq-train"
PORT = 29500
WORKER = "taskmoe_plugin.cli.launched"
AGAIN = "start the same command again to go on from the last checkpoint"


def add_parser(commands: Any) -> None:
    """Add ``launch`` to the subcommands of ``taskmoe``."""
    launch: ArgumentParser = commands.add_parser(
        "launch",
        help="run fairseq-train on several processes",
        usage="taskmoe launch --processes N [--nodes N --node-rank R --master HOST[:PORT]] -- fairseq-train ...",
        description="Run fairseq-train on several processes of this machine, each with a GPU if there are GPUs, "
        "through torch.distributed.run. If one of them fails, the others are stopped.",
    )
    add = launch.add_argument
    add("--processes", type=int, required=True, metavar="N", help="processes on this machine")
    add("--nodes", type=int, default=1, metavar="N", help="machines; start the command on each of them (default: 1)")
    add("--node-rank", type=int, default=0, metavar="R", help="which of them this is, counted from 0 (default: 0)")
    add("--master", default="127.0.0.1", metavar="HOST[:PORT]", help=f"machine 0, a free port on it (default: {PORT})")
    add("command", nargs=REMAINDER, help=f"-- {COMMAND} and its flags")
    launch.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Run the command, and stop with an error that names the first process that failed."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    check(args, command)
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _check_backend(command)
    # The processes import this package too, wherever this one has found it.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # As fairseq-train does, they look for nothing in the working directory.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ[PARENT] = str(os.getpid())
    host, _, port = args.master.partition(":")
    where: list[Any] = ["--standalone"]
    if args.nodes > 1:
        where = ["--nnodes", args.nodes, "--node-rank", args.node_rank]
        where += ["--master-addr", host, "--master-port", port or PORT]
    argv = [*where, "--nproc-per-node", args.processes, "-m", WORKER, *command]
    try:
        torchrun.main([str(each) for each in argv])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode == 2:
            raise UsageError(
                f"{COMMAND}: process {rank} could not start; what is wrong with its flags is written above"
            ) from error
        raise TaskMoEError(
            f"{COMMAND}: process {rank} of {args.processes * args.nodes} {_ending(first.exitcode)}, and the others "
            f"were stopped; {AGAIN}"
        ) from error
    except SignalException as error:
        raise TaskMoEError(f"launch: got {error.sigval.name}, and the processes were stopped; {AGAIN}") from error


def _check_backend(command: list[str]) -> None:
    """Raise ``UsageError`` if the user asks for what only GPUs have."""
    import torch

    given = dict(zip(command, [*command[1:], ""])) | dict(each.split("=", 1) for each in command if "=" in each)
    backend = given.get("--ddp-backend", BACKEND)
    if backend != BACKEND and not (torch.cuda.is_available() and "--cpu" not in command):
        raise UsageError(f"--ddp-backend {backend}: needs GPUs; leave it out, and launch takes {BACKEND}")


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with status {exit_code} (what it says is above)"


def check(args: Namespace, command: list[str]) -> None:
    """Raise ``UsageError`` if the command cannot be launched."""
    if command[:1] != [COMMAND]:
        raise UsageError(f"launch: give '-- {COMMAND} ...' after the flags of launch")
    for name in ("processes", "nodes"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: give at least 1")
    if not 0 <= args.node_rank < args.nodes:
        raise UsageError(f"--node-rank {args.node_rank}: give a number from 0 up to --nodes, which is {args.nodes}")
    for flag in command:
        if flag.split("=")[0] in ("--distributed-rank", "--distributed-world-size", "--distributed-init-method"):
            raise UsageError(f"{flag}: launch sets this itself; leave it out")
