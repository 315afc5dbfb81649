"""Settings for every test: no telemetry, which would reach outside the machine; no time limits that load can break.

A shell that runs the tests in the background makes them ignore Ctrl-C, and so would the programs that they interrupt.

Properties are tried on the same examples in every run. `HYPOTHESIS_PROFILE=explore` tries new ones.
"""

import os
import signal

from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
