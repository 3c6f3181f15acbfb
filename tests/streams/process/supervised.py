"""`python -m tests.streams.process.supervised CODE ...`: supervise `python -c CODE ...`; settings: the environment."""

import sys

from tamiyo.streams.process.logs import configure
from tamiyo.streams.process.supervisor import Supervisor
from tamiyo.streams.settings import SupervisorSettings

if __name__ == "__main__":
    configure()
    sys.exit(Supervisor([sys.executable, "-c", *sys.argv[1:]], SupervisorSettings()).run())
