"""How the threads of OpenMP wait for each other. Every program imports this before torch.

By default they spin at each barrier. Where the cores have other work, a spinning thread keeps the
core from the one that it waits for: two threads beside one busy process took 36 s for what takes
5.8 s with threads that sleep. OpenMP reads the variable when it is loaded, which is with torch.
What the environment says already stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
