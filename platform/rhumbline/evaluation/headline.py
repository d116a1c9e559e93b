"""The few sentences at the top of a report, and how numbers are said in it and on the model card.

Evaluations are JSON of `PolicyEvaluation`; an em dash stands for what is not defined.

    headlines([t0, t2], initial)[0]        # Headline('Hypervolume', '2,715', ('t=2, 95% interval 2,640 to 2,790', ...))
    say_interval({"value": 0.52, "low": 0.47, "high": 0.575})            # '0.52 [0.47, 0.57]'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rhumbline.evaluation.gains import hypervolume_gain

if TYPE_CHECKING:
    from rhumbline.evaluation.health import Finding

JSON = Mapping[str, Any]
MINUS = "\N{MINUS SIGN}"


class Headline(NamedTuple):
    """One number that a reader should take away."""

    title: str
    value: str
    details: tuple[str, ...]


def headlines(evaluations: Sequence[JSON], initial: JSON | None) -> list[Headline]:
    """Hypervolume of the last iteration, its win rate over the initial policy, steerability, and response length at the two
    ends, as far as they exist.
    """
    first, last = evaluations[0], evaluations[-1]
    volume = last["hypervolume"]
    details = [f"{last['label']}, 95% interval {say_number(volume['low'])} to {say_number(volume['high'])}"]
    for earlier in ([] if last is first else [first]) + ([] if initial is None else [initial]):
        gain = hypervolume_gain(last, earlier)
        if gain is not None:
            details.append(f"{say_interval(gain.to_json(), signed=True)} over {earlier['label']}")
    found = [Headline("Hypervolume", say_number(volume["value"]), tuple(details))]
    if last["win_rate"] is not None:
        rate = last["win_rate"]
        found.append(
            Headline(
                "Win rate over the initial policy",
                say_share(rate["value"]),
                (
                    f"by {last['win_rate_head']}, on the same held-out prompts; a tie counts as half a win",
                    f"95% interval {say_share(rate['low'])} to {say_share(rate['high'])}",
                ),
            )
        )
    if last["spearman"] is not None:
        rho = last["spearman"]
        values = [interval["value"] for interval in rho.values()]
        mean = None if None in values else sum(values) / len(values)
        found.append(
            Headline(
                "Steerability (Spearman)" if len(rho) == 2 else "Steerability (mean Spearman)",
                " / ".join(map(say_number, values)) if len(rho) == 2 else say_number(mean),
                tuple(f"{name} {say_interval(interval)}" for name, interval in rho.items()),
            )
        )
    if last["length_ratio"] is not None:
        ratio = last["length_ratio"]
        ends = [entry for entry in last["directions"] if entry["vector"] is not None]
        found.append(
            Headline(
                "Length, end to end",
                say_share(ratio["value"]),
                (
                    " against ".join(say_direction(end) for end in (ends[-1], ends[0]))
                    + ": "
                    + " against ".join(say_number(end["length"]["value"]) for end in (ends[-1], ends[0]))
                    + " tokens",
                    f"95% interval {say_share(ratio['low'])} to {say_share(ratio['high'])}",
                ),
            )
        )
    return found


def verdict(health: Sequence[Finding]) -> Headline:
    """What the health checks say, in one line."""
    counts = {level: sum(finding.level == level for finding in health) for level in ("error", "warning", "note")}
    if counts["error"]:
        value, detail = "Do not trust", "the figures have errors: see health checks"
    elif counts["warning"]:
        value, detail = "With care", "a known failure shows: see health checks"
    else:
        value, detail = "Healthy", "no known failure shows"
    said = [f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items() if n]
    return Headline("Health checks", value, (", ".join(said) or "no findings", detail))


def say_number(value: float | None) -> str:
    """About three significant figures, thousands separated, a real minus sign; an em dash for nothing."""
    if value is None:
        return "\N{EM DASH}"
    size = abs(value)
    places = 0 if size >= 100 or (isinstance(value, int) and not isinstance(value, bool)) else 1 if size >= 10 else 2
    text = f"{value:,.{places}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) != 0 else text.lstrip("-")


def say_share(value: float | None) -> str:
    return "\N{EM DASH}" if value is None else f"{value:.0%}"


def say_interval(interval: JSON | None, signed: bool = False) -> str:
    """`0.52 [0.47, 0.57]`; `signed` puts a plus before a gain."""
    if interval is None or interval["value"] is None:
        return "\N{EM DASH}"
    sign = "+" if signed and interval["value"] > 0 else ""
    if interval["low"] is None:
        return sign + say_number(interval["value"])
    return f"{sign}{say_number(interval['value'])} [{say_number(interval['low'])}, {say_number(interval['high'])}]"


def say_direction(entry: JSON) -> str:
    """`−45°`, `(0.58, 0.58, 0.58)` or `no direction`."""
    if entry["vector"] is None:
        return "no direction"
    if entry["angle_deg"] is not None:
        return f"{entry['angle_deg']:g}°".replace("-", MINUS)
    return f"({', '.join(f'{weight:.2f}' for weight in entry['vector'])})".replace("-", MINUS)


def say_unit(evaluation: JSON) -> str:
    """What v . r / scale counts: `sd`, standard deviations of t=0's samples, or `points` where scores are not standardised."""
    return "points" if all(scale == 1 for scale in evaluation["scale"].values()) else "sd"


def say_seconds(seconds: float | None) -> str:
    """`12 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds is None:
        return "\N{EM DASH}"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
