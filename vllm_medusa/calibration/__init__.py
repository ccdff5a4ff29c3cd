# SPDX-License-Identifier: Apache-2.0
"""How many nodes pay on this machine, by number of running requests."""
