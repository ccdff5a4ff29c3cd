# SPDX-License-Identifier: Apache-2.0
"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

_LABELS = {
    "attention": "attention, sharded",
    "mlp": "MLP, sharded",
    "embedding": "token embedding, sharded",
    "lm_head": "LM head, sharded",
    "replicated": "norms and biases, replicated",
    "heads_blocks": "heads: blocks, sharded",
    "heads_projections": "heads: vocabulary, sharded",
    "draft_probs": "heads: drafts' probabilities",
    "tree_buffers": "trees and inputs of the heads",
    "tree_attention": "tree attention's work space",
    "activations": "activations",
    "reserve": "CUDA context, libraries, CUDA graphs",
}


def show_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} B"


def print_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of `make_plan`."""
    console = console or Console()
    console.print(Text(_title(plan), style="bold"))
    console.print(_memory_table(plan))
    _print_verdict(plan, console)
    steps = plan["steps"]
    if "missing" in steps:
        console.print(Text(f"No step cost: {steps['missing']}."))
    else:
        console.print(_step_table(plan))
        _print_assumptions(steps, console)
    for note in plan["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))


def _title(plan: Mapping[str, Any]) -> str:
    base, heads, settings = plan["base"], plan["heads"], plan["settings"]
    quantization = settings["quantization"]
    projection = heads["projection"]
    draft = heads["draft_vocab_size"]
    return (
        f"{base['name']} ({base['num_parameters'] / 1e9:.2f} billion parameters by "
        f"{base['source']}) in {settings['dtype']}"
        + (f", {quantization}" if quantization else "")
        + f"; {heads['num_heads']} heads ({projection} projection"
        + (f" to {draft:,} tokens" if draft else "")
        + f"), {plan['tree']['num_nodes']} nodes; {settings['tensor_parallel_size']} x "
        + plan["device"]["name"]
    )


def _memory_table(plan: Mapping[str, Any]) -> Table:
    plain, medusa = plan["memory"]["plain"], plan["memory"]["medusa"]
    table = Table(title="memory of each rank", box=SIMPLE)
    table.add_column("")
    table.add_column("plain vLLM", justify="right")
    table.add_column("with Medusa", justify="right")
    for part in ("exact", "estimated"):
        for key, count in medusa[part].items():
            if not count and not plain[part].get(key):
                continue
            label = _LABELS[key] + (" (estimate)" if part == "estimated" else "")
            before = plain[part].get(key)
            table.add_row(
                label, "" if before is None else show_bytes(before), show_bytes(count)
            )
    table.add_section()
    caches = plain["kv_cache"], medusa["kv_cache"]
    if medusa["budget"] is not None:
        share = plan["settings"]["gpu_memory_utilization"]
        table.add_row(
            f"{share:.0%} of {show_bytes(plan['device']['memory_bytes'])}",
            *(show_bytes(side["budget"]) for side in (plain, medusa)),
        )
    table.add_row(
        "KV cache of a token", *(show_bytes(kv["bytes_per_token"]) for kv in caches)
    )
    if medusa["kv_cache"]["num_bytes"] is not None:
        length = plan["settings"]["max_model_len"]
        rows = (
            ("KV cache left", [show_bytes(kv["num_bytes"]) for kv in caches]),
            ("KV cache in tokens", [f"{kv['num_tokens']:,}" for kv in caches]),
            (
                f"requests of {length:,} tokens",
                [f"{kv['max_concurrency']:,.2f}" for kv in caches],
            ),
        )
        for label, values in rows:
            table.add_row(label, *values)
    nodes = plan["tree"]["num_nodes"]
    table.add_row("KV slots of a request's step", "1", str(1 + nodes))
    return table


def _print_verdict(plan: Mapping[str, Any], console: Console) -> None:
    caches = [plan["memory"][side]["kv_cache"] for side in ("plain", "medusa")]
    if caches[1]["num_bytes"] is None:
        console.print("Whether it fits is not worked out: the memory is not known.")
        return
    if not plan["fits"]:
        length = plan["settings"]["max_model_len"]
        console.print(
            Text(
                f"Does not fit: no room for the KV cache of one request of {length:,} "
                f"tokens. What helps: {'; '.join(plan['advice'])}.",
                style="bold red",
            )
        )
        return
    lost = caches[0]["num_tokens"] - caches[1]["num_tokens"]
    share = lost / caches[0]["num_tokens"]
    console.print(
        Text(f"Fits. Medusa takes {lost:,} tokens of KV cache ({share:.1%}).")
    )


def _step_table(plan: Mapping[str, Any]) -> Table:
    steps = plan["steps"]
    title = "expected decode step in ms (estimate: a roofline, nothing measured)"
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1))
    nodes = plan["tree"]["num_nodes"]
    headers = ["requests", "plain", f"{nodes} nodes", "heads", "overhead"]
    if steps["expectation"] is not None:
        headers += ["tokens", "speed-up", "best nodes", "speed-up"]
    for header in headers:
        table.add_column(header, justify="right")
    for row in steps["rows"]:
        cells = [
            str(row["requests"]),
            f"{row['plain_ms']:.2f}",
            f"{row['tree_ms']:.2f}",
            f"{row['heads_ms']:.2f}",
            f"{row['overhead']:.2f}",
        ]
        if steps["expectation"] is not None:
            cells += [
                f"{row['tokens_per_step']:.2f}",
                f"{row['speedup']:.2f}",
                str(row["best_nodes"]),
                f"{row['best_speedup']:.2f}",
            ]
        table.add_row(*cells)
    return table


def _print_assumptions(steps: Mapping[str, Any], console: Console) -> None:
    efficiency = steps["efficiency"]
    text = (
        f"Assumed: {steps['context']:,} tokens of context, "
        f"{efficiency['bandwidth']:.0%} of the published bandwidth, "
        f"{efficiency['compute']:.0%} of the published FLOP/s"
    )
    if steps["reduce_latency"] is not None:
        text += f", {1e6 * steps['reduce_latency']:.0f} µs for each exchange of ranks"
    text += "; no time for the host."
    if steps["expectation"] is not None:
        text += f" Tokens per step: {steps['expectation']}."
    console.print(Text(text))
    if steps["table"] is not None:
        table = ",".join(f"[{a},{b},{n}]" for a, b, n in steps["table"])
        console.print(
            Text(f"num_speculative_tokens_per_batch_size=[{table}]", style="dim"),
            soft_wrap=True,
        )
