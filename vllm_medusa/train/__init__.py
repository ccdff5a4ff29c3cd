# SPDX-License-Identifier: Apache-2.0
"""Medusa-1 training: heads for a frozen base model (arXiv 2401.10774, section 2.2).

`pipeline.train` runs the stages in order, each of which can be interrupted and
goes on where it stopped:

1. answers: prompts are answered by the base model through vLLM, and the hidden
   state behind every answer token is kept (`answering`, `generate`, `capture`,
   `store`);
2. heads: fitted to those hidden states, or to the ones that the base model computes
   along (`data`, `cached_batches`, `live_batches`, `trainer`, `step`, `heads_loss`),
   in one process or many (`processes`, `sharding`);
3. measure: accuracy per head and rank on answers never trained on (`measure`);
4. write: checkpoint, accuracies, tree, curve and recipe (`publish`, `curve`).
"""
