"""UTF-8 in every program, whatever the locale."""

import codecs
import locale
import os
import sys

__all__ = ["in_utf8"]


def in_utf8() -> None:
    """Restarts the program in Python's UTF-8 mode if its locale has another encoding.

    Annotations contain class names and paths beyond ASCII, and libraries open files without naming
    an encoding, which fails under ``LC_ALL=C``. Processes that the program starts inherit the mode.
    """
    encodings = locale.getpreferredencoding(False), sys.getfilesystemencoding()
    if not sys.flags.utf8_mode and {codecs.lookup(each).name for each in encodings} != {"utf-8"}:
        os.environ["PYTHONUTF8"] = "1"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        # PYTHONIOENCODING may lack a character. Notebooks and tests replace the streams.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
