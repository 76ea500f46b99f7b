"""Programs read and write UTF-8, whatever the locale."""

import codecs
import locale
import os
import sys

__all__ = ["in_utf8"]


def in_utf8() -> None:
    """Starts a program again in Python's UTF-8 mode if its locale has another encoding.

    Class names and paths beyond ASCII come from annotations, and libraries open files without an
    encoding: under ``LC_ALL=C`` or ``LANG=C`` without coercion, each of them could be the end of a
    program. The processes that it starts are in this mode as well.
    """
    encodings = locale.getpreferredencoding(False), sys.getfilesystemencoding()
    if not sys.flags.utf8_mode and {codecs.lookup(each).name for each in encodings} != {"utf-8"}:
        os.environ["PYTHONUTF8"] = "1"
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        # What PYTHONIOENCODING has no character for. Notebooks and tests have streams of their own.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
