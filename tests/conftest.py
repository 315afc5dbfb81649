"""Settings for every test: no telemetry, which would reach outside the machine; no time limits that load can break."""

import os

from hypothesis import settings

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

settings.register_profile("any_load", deadline=None)
settings.load_profile("any_load")
