"""The table that the demonstration prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from coin_export.demo.run import DemoResult


def print_result(result: DemoResult, console: Console) -> None:
    """Print one line per phase and model, and what the same safety costs by replication."""
    title = "Two networks, one coded model, three Triton servers"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("phase", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("direct", "decoded", "original\n%", "returned\n%", "norm.\n%", "p50\nms", "p99\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for phase in result.phases:
        for position, (model, tally) in enumerate(phase.models.items()):
            original = result.original_accuracy[model]
            first = position == 0
            table.add_row(
                phase.name if first else "",
                model,
                str(tally.direct),
                str(tally.decoded),
                f"{original:.1f}",
                f"{tally.accuracy:.1f}",
                f"{100 * tally.accuracy / original:.1f}",
                f"{tally.percentile_ms(50):.2f}",
                f"{tally.percentile_ms(99):.2f}",
                end_section=position == len(phase.models) - 1,
            )
    console.print(table)
    requests = sum(phase.requests for phase in result.phases)
    failed = sum(phase.failed for phase in result.phases)
    originals, servers = len(result.original_accuracy), len(result.report.group.members)
    console.print(
        f"{requests - failed} of {requests} requests answered for every model. To survive the loss of any one server, "
        f"the code runs {servers} servers; replication would run {2 * originals}.\n"
        "original: accuracy of the model itself; returned: of what the client got, direct or decoded; "
        "norm.: returned / original. One image a request, one request at a time. A server with too many overdue "
        "answers counts as down, so most requests of the straggler phase did not wait for it."
    )
