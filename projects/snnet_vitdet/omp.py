"""What programs set for the libraries they load. Every program imports this before all others.

The threads of OpenMP wait for each other asleep. By default they spin at each barrier: where the
cores have other work, a spinning thread keeps the core from the one that it waits for, and two
threads beside one busy process took 36 s for what takes 5.8 s with threads that sleep. OpenMP reads
the variable when it is loaded, which is with torch. What the environment says already stays.

Pictures are drawn without a screen. A name of a screen that matplotlib does not know, in the
environment, would end every program that loads it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "agg"
