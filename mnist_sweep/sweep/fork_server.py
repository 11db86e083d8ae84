"""What the server that forks the workers imports last. It outlives a signal to the process group.

The workers need seconds to save their trials. Without their server the driver would take them for
dead.
"""

import signal

from mnist_sweep.common.signals import TERMINATING

for _signum in TERMINATING:  # multiprocessing itself ignores SIGINT
    signal.signal(_signum, signal.SIG_IGN)
