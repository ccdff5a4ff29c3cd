# SPDX-License-Identifier: Apache-2.0
"""Files that may lie beside heads: what is known about them, and what suits them."""

ACCURACIES_FILE = "accuracies.json"
TREE_FILE = "tree.json"
BATCH_TABLE_FILE = "batch_table.json"

SIDE_FILES = {
    ACCURACIES_FILE: "accuracy of each head and rank",
    TREE_FILE: "token tree",
    BATCH_TABLE_FILE: "nodes by number of running requests",
}
"""Name of each file -> what it holds."""
