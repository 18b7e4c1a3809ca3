"""The rooms that the commands share; the commands import them, never the other way round."""

import os

# Read by OpenMP when torch is loaded, so the commands import this package before torch. Threads that wait for
# others must sleep and leave the core to them; otherwise two trainings on one machine take twice as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
