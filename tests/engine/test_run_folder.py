"""One run at a time in a folder."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest

from snnet_vitdet.engine import alone_in
from snnet_vitdet.engine.run_folder import log_to_file
from snnet_vitdet.errors import InputError

HOLDER = """
    import sys, time
    from multiprocessing import get_context
    from snnet_vitdet.engine.run_folder import alone_in

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


def test_a_log_on_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path, capsys, restored_logging):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log_to_file(str(tmp_path), 0, ("some.library",))
    for _ in range(3):
        logging.getLogger("some.library").info("what is going on")
    said = capsys.readouterr().err
    assert said.count("cannot write") == 1 and "log.txt: No space left on device" in said
    assert "Traceback" not in said


def test_each_process_has_its_log_and_a_second_run_no_second_line(tmp_path, restored_logging):
    for rank in (0, 0, 1):
        log_to_file(str(tmp_path), rank, ("some.program", "some.library"))
        logging.getLogger("some.library").info("process %d", rank)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["process 0", "process 0", "process 1"]
    assert (tmp_path / "log.txt.rank1").read_text().count("process 1") == 1
    assert sorted(os.listdir(tmp_path)) == ["log.txt", "log.txt.rank1"]
