# SPDX-License-Identifier: Apache-2.0
"""Parts of `benchmarks.gpu.prepare`: wheels, the stream, its parts, the project."""
