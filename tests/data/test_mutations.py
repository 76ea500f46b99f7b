"""A COCO file with any value replaced by any other one, through all that is done with it."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_file_with_a_value_replaced_is_refused_in_a_sentence_or_used(tmp_path):
    program = Path(__file__).with_name("mutation_program.py")
    # In another process, as a segmentation fault would end it.
    finished = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "0", "400"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    counts = json.loads(finished.stdout)
    assert sum(counts.values()) == 400 and counts["scored"] >= 10 and counts["refused"] >= 300
