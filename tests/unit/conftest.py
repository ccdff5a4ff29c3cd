# SPDX-License-Identifier: Apache-2.0
"""Settings of all unit tests."""

from hypothesis import settings

# On a busy machine a single example may take any time.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
