"""`python -m tests.support.supervised CODE ...`: supervise `python -c CODE ...`, with settings of the environment."""

import sys

from tamiyo.streams.process.logs import configure
from tamiyo.streams.process.supervisor import Supervisor
from tamiyo.streams.settings import SupervisorSettings

if __name__ == "__main__":
    configure()
    sys.exit(Supervisor([sys.executable, "-c", *sys.argv[1:]], SupervisorSettings()).run())
