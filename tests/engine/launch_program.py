"""What the processes of test_launch.py do, and a program that starts them."""

import os
import signal
import sys
import time
from pathlib import Path

import snnet_vitdet.omp  # noqa: F401  # isort: skip

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from snnet_vitdet.engine.launch import AUTO, run_in_processes
from snnet_vitdet.errors import InputError, exit_on_input_error


def note(args, folder):
    """Who there is, and whether the run is resumed."""
    who = f"{comm.get_rank()} {comm.get_local_rank()} {comm.get_world_size()} {args.resume}"
    with open(f"{folder}/rank{comm.get_rank()}", "a") as file:
        file.write(f"{who}\n")


def mistake_of_one(_args, _folder):
    """The second process finds something wrong; the first waits for it."""
    if comm.get_rank() == 1:
        raise InputError("some.jpg cannot be used: replace the file")
    comm.synchronize()


def failure_of_one(_args, _folder):
    if comm.get_rank() == 1:
        raise RuntimeError("no memory")
    comm.synchronize()


def death_of_one(_args, _folder):
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def death_once(args, folder):
    """The second process is killed, unless it has been started again."""
    note(args, folder)
    comm.synchronize()
    if not args.resume:
        death_of_one(args, folder)


def wait(_args, folder):
    with open(f"{folder}/pid{comm.get_rank()}", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def record(_args, folder, number):
    with open(f"{folder}/recorded", "w") as file:
        file.write(f"{os.getpid()} {number}")


def program():
    """Runs a function above in processes, by its name, a folder and detectron2's arguments."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url=AUTO)
    parser.add_argument("--wrong", action="store_true")
    args = parser.parse_args(sys.argv[3:])

    def prepare(number):
        if args.wrong:
            raise InputError("no such config")
        print("prepared for", number)
        return (sys.argv[2],)

    with exit_on_input_error():
        run_in_processes(prepare, globals()[sys.argv[1]], args)
    print("threads left:", sorted(threads()))


def threads():
    """Names of the threads of this process, of libraries, too; where the system tells."""
    tasks = Path("/proc/self/task")
    return [path.read_text().strip() for path in tasks.glob("*/comm")]


if __name__ == "__main__":
    program()
