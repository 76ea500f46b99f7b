"""Files that are written as a whole or not at all."""

import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import replacing, write_atomically


def test_a_file_is_there_when_it_is_whole_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
    assert path.read_text() == "one" and os.listdir(path.parent) == ["file.txt"]
    write_atomically(path, b"two")
    assert path.read_text() == "two" and os.listdir(path.parent) == ["file.txt"]


def test_other_users_may_read_it_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "file")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_on_the_way_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_what_a_writer_raises_is_a_sentence_if_it_is_named(tmp_path):
    sentence = "cannot write .*file: not today. Check the folder's"
    with (
        pytest.raises(InputError, match=sentence),
        replacing(tmp_path / "file", RuntimeError) as temporary,
    ):
        temporary.write_text("half")
        raise RuntimeError("not today\nnor tomorrow")
    (tmp_path / "folder").write_text("")
    with pytest.raises(InputError, match="cannot write .*folder/file: "):
        write_atomically(tmp_path / "folder" / "file", b"")


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for it: the same error from the same call."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(InputError, match="cannot write .*file: File too large"):
            write_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]


def test_a_killed_process_leaves_what_was_there_and_the_next_write_clears_up(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    program = """
import os, sys
from snnet_vitdet.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""
    process = subprocess.run([sys.executable, "-c", program, str(path)])
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before" and len(os.listdir(tmp_path)) == 2
    write_atomically(path, b"after")
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["file"]
