"""What a program of long computations has to do first, whether `accelerate launch` starts it or not."""

import argparse
import ctypes
import os
import signal
import sys

import psutil
import torch

PR_SET_PDEATHSIG = 1  # of Linux's prctl
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt
SEVERAL_MACHINES = (
    "error: accelerate's launcher starts no processes on the CPUs of several machines (each would train alone): give "
    "--num_machines 1, or start torchrun on each, with ACCELERATE_USE_CPU=true and --nnodes, --node_rank, "
    "--nproc_per_node, --master_addr and --master_port."
)


def follow_launcher() -> None:
    """Stop where the launcher is stopped, and be two processes where it was asked for two on a CPU."""
    _stop_with_launcher()
    _start_cpu_processes()


def keep_memory(device: torch.device) -> None:
    """On a CPU under glibc, have the memory of freed tensors handed out again instead of returned to the system.

    Otherwise every large tensor is mapped anew, and cleared by the kernel page by page. The process then keeps the
    most memory it ever had until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and device.type == "cpu":
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 512 * 2**20)  # bytes, so that the heap grows rarely


def _stop_with_launcher() -> None:
    """On Linux, get SIGTERM when `accelerate launch` ends, which passes on no signal to the one process it starts."""
    if sys.platform == "linux" and _launched():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _launched() -> bool:
    """Whether `accelerate launch` is the parent of this process."""
    parent = psutil.Process().parent()
    return parent is not None and any("accelerate" in part for part in parent.cmdline()[:4])


def _start_cpu_processes() -> None:
    """Be two processes where `accelerate launch --cpu --num_processes 2` asks for two.

    On a CPU accelerate's launcher (1.15) leaves starting more than one process to MPI: it starts one, sets the address
    at which they would meet (on one machine, 127.0.0.1), and says nothing. Then this process becomes torchrun with the
    number that the launcher was given.
    """
    environment = os.environ
    started_otherwise = any(name in environment for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    address = environment.get("MASTER_ADDR")
    if started_otherwise or not on_cpu or address is None or not _launched():
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--num_machines", "--num-machines", type=int)
    asked = parser.parse_known_args(psutil.Process().parent().cmdline())[0]
    processes = asked.num_processes
    if (asked.num_machines or 1) > 1 or (asked.num_machines is None and address != "127.0.0.1"):
        raise SystemExit(SEVERAL_MACHINES)
    if address != "127.0.0.1":  # of the environment, as a scheduler sets it
        return
    if processes is None:
        raise SystemExit("error: give the number of CPU processes on the command line: --cpu --num_processes 2.")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    module = sys.modules["__main__"].__spec__  # None for a script
    program = ["-m", module.parent] if module else [sys.argv[0]]
    os.execv(sys.executable, [sys.executable, *torchrun, *program, *sys.argv[1:]])
