# SPDX-License-Identifier: Apache-2.0
"""What an engine with Medusa will need and cost, worked out before anything loads."""
