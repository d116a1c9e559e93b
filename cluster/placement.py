"""What a job wants of a cluster against what the cluster has, before anything is started.

    rows = [("generator", 2, 1.0, 1.0), ("learner", 8, 4.0, 1.0)]      # role, count, CPUs and GPUs of each
    lacking(have, totals(rows))            # ['GPU: wanted 10, the cluster has 8'], empty when all is there
    too_large(nodes(), rows)               # ['learner: each wants 4 CPU and 2 GPU, ...']: an actor never spans nodes
    print("\\n".join(table(rows, have)))

An actor that fits nowhere stays pending for ever and Ray says so only in its logs: this looks like a hang, so a job
asks first. It is judged by what the nodes have in all: what others use now may become free. Nodes that an autoscaler has
not started yet do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KINDS = ("CPU", "GPU")
Row = tuple[str, int, float, float]  # role, count, CPUs of each, GPUs of each


def totals(rows: Sequence[Row]) -> dict[str, float]:
    """{'CPU': ..., 'GPU': ...} of all rows side by side."""
    return {"CPU": sum(n * cpus for _, n, cpus, _ in rows), "GPU": sum(n * gpus for _, n, _, gpus in rows)}


def lacking(have: Mapping[str, float], wanted: Mapping[str, float]) -> list[str]:
    """One line per kind of resource that the cluster has too little of."""
    return [
        f"{kind}: wanted {amount:g}, the cluster has {have.get(kind, 0.0):g}"
        for kind, amount in wanted.items()
        if amount > have.get(kind, 0.0) + 1e-6  # fractions add up with rounding
    ]


def too_large(nodes: Sequence[Mapping[str, float]], rows: Sequence[Row]) -> list[str]:
    """One line per role of which no node could hold a single actor, however idle the cluster."""
    out = []
    for role, count, cpus, gpus in rows:
        each = {"CPU": cpus, "GPU": gpus}
        if count > 0 and not any(not lacking(node, each) for node in nodes):
            wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in each.items() if amount > 0)
            largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
            has = " and ".join(f"{largest.get(kind, 0.0):g} {kind}" for kind in KINDS)
            out.append(f"{role}: each wants {wanted} on one node, the largest of {len(nodes)} has {has}")
    return out


def table(rows: Sequence[Row], have: Mapping[str, float]) -> list[str]:
    """Lines: one per role with the resources of all its actors, then the sums wanted and had."""
    wanted = totals(rows)
    cells: list[tuple[str, ...]] = [("", "count", *KINDS)]
    cells += [(role, str(n), f"{n * cpus:g}", f"{n * gpus:g}") for role, n, cpus, gpus in rows]
    cells.append(("wanted", "", *(f"{wanted[kind]:g}" for kind in KINDS)))
    cells.append(("cluster has", "", *(f"{have.get(kind, 0.0):g}" for kind in KINDS)))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
