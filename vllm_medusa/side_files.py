# SPDX-License-Identifier: Apache-2.0
"""Files that may lie beside heads: what is known about them, and what suits them."""

ACCURACIES_FILE = "accuracies.json"
TREE_FILE = "tree.json"
CALIBRATION_FILE = "calibration.json"

SIDE_FILES = {
    ACCURACIES_FILE: "accuracy of each head and rank, as training knows it",
    TREE_FILE: "token tree, as training knows it",
    CALIBRATION_FILE: "accuracies, tree and nodes by number of running requests",
}
"""Name of each file -> what it holds. Where the last one and another tell the same,
the last one counts."""
