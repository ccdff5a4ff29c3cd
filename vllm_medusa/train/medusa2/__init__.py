# SPDX-License-Identifier: Apache-2.0
"""Medusa-2: heads and backbone trained together (arXiv 2401.10774, section 2.2.2).

`pipeline.train` runs the stages, each of which goes on where it was interrupted:

1. the original model is measured on held-out answers (`quality`, `held_out`);
2. heads alone, the backbone frozen (`schedule`; two-stage, without given heads);
3. both (`trainer`, `joint_model`, `tuned`, `lora`, `full`), while a guard compares
   the backbone with the original (`quality`);
4. the tuned backbone is merged, written, read again and measured, and heads,
   accuracies and a tree written for it (`export`).
"""
