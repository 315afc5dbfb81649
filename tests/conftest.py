"""Settings for every test: no telemetry, which would reach outside the machine."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
