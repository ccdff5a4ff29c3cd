# SPDX-License-Identifier: Apache-2.0
"""Quality and speed of acceptance schemes, trees and heads on a set of prompts."""
