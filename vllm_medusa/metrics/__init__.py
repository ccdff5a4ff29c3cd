# SPDX-License-Identifier: Apache-2.0
"""The plugin's own metrics: counted beside the scheduler, timed in the workers, shown
by Prometheus and in the log. docs/metrics.md says what each means.

Import what you need from the modules: some run in the engine core, some in the workers
and some in the front end, and each imports that part of vLLM.
"""
