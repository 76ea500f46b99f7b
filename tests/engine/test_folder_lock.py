"""One run at a time in a folder."""

import subprocess
import sys
import textwrap

import pytest

from snnet_vitdet.engine import alone_in
from snnet_vitdet.errors import InputError

HOLDER = """
    import sys, time
    from multiprocessing import get_context
    from snnet_vitdet.engine.folder_lock import alone_in

    if __name__ == "__main__":
        with alone_in(sys.argv[1]):
            # A worker of the data, which may live longer than the one that holds the lock.
            get_context("fork").Process(target=time.sleep, args=(5,), daemon=True).start()
            print("there", flush=True)
            time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process with a run in the folder."""
    program = textwrap.dedent(HOLDER)
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_with_the_name_of_the_first(holder, tmp_path):
    with (
        pytest.raises(InputError, match=f"another run \\(process {holder.pid} on .*output_dir"),
        alone_in(str(tmp_path), patience=0),
    ):
        pass


def test_a_killed_run_is_waited_for_until_it_is_gone(holder, tmp_path, caplog):
    holder.kill()
    with alone_in(str(tmp_path)):
        pass


def test_a_run_that_has_ended_leaves_the_folder_to_the_next(tmp_path):
    for _ in range(2):
        with alone_in(str(tmp_path / "new"), patience=0):
            pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/folder cannot be written"),
        alone_in(str(tmp_path / "file" / "folder")),
    ):
        pass
