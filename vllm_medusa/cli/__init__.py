# SPDX-License-Identifier: Apache-2.0
"""The `vllm-medusa` command: one module per subcommand, see `main`."""
