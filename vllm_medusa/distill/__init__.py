# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: a model answers prompts, and what it wrote is trained on.

`run.distill` works shard by shard:

1. plan: conversations are drawn from the sources by their weights (`sources`,
   `mixture`);
2. talk: the model answers them, turn by turn, all requests of a turn at once (`talk`),
   in an engine of this machine (`local_engine`) or through Ray Data (`ray_engine`);
3. write: one file per shard and a manifest, from which an interrupted run goes on
   (`manifest`).

What a shard holds follows from the options and the shards before it alone: every
request has a seed of its own.
"""
