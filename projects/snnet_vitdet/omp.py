"""Environment variables for libraries. Every program imports this module first.

OpenMP's threads should sleep while they wait for each other. By default they spin at each barrier
and keep the core from the thread they wait for: beside one busy process, two spinning threads took
36 s for work that sleeping ones did in 5.8 s. OpenMP reads the variable when torch is loaded. A
value that the user has set stays.

matplotlib draws without a screen. An unknown backend in the environment would be an error.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "agg"
