# SPDX-License-Identifier: Apache-2.0
"""Proof and measurements on a GPU; README.md in this folder says how."""
