# SPDX-License-Identifier: Apache-2.0
"""Settings of all unit tests."""

from hypothesis import settings

# The same examples on every machine; on a busy one a single example may take any time.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
