"""``python -m benchmarks.report RESULTS.json``: the measured times as a Markdown table of ratios."""

import argparse
import json
import pathlib


def milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds:,.0f} ms"


def mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def factor(value: float) -> str:
    return f"{value:.1f}x" if value >= 0.95 else f"{value:.2f}x"


def table(results: dict) -> str:
    """One row a contender: median, spread, memory, and how many times slower it is than vqkit taking turns with it."""
    machine = results["machine_info"]
    about = machine.get("vqkit", {})
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    lines = [
        f"{about.get('device', machine['machine'])}; Python {machine['python_version']}, {versions}; {results['datetime'][:10]}. "
        "Medians; a ratio is the contender's median over that of vqkit's calls in between.",
        "",
        "| what | contender | median | fastest..slowest | extra memory | vqkit is faster by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[str, list[dict]] = {}
    for row in results["benchmarks"]:
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        ours = next((r["stats"]["median"] for r in rows if r["extra_info"]["contender"] == "vqkit"), None)
        for number, row in enumerate(rows):
            stats, info = row["stats"], row["extra_info"]
            ratio = "" if info["contender"] == "vqkit" or ours is None else factor(stats["median"] / info.get("vqkit_beside", ours))
            cells = [
                group if number == 0 else "",
                info["contender"] + (f" ({info['tokens'] / stats['median']:,.0f} tokens/s)" if "tokens" in info else ""),
                milliseconds(stats["median"]),
                f"{milliseconds(stats['min'])}..{milliseconds(stats['max'])}",
                mebibytes(info["extra_memory"]),
                ratio,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=pathlib.Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--out", type=pathlib.Path, help="write the table to this file too")
    arguments = parser.parse_args()
    try:
        text = table(json.loads(arguments.results.read_text()))
    except (OSError, json.JSONDecodeError, KeyError) as error:
        parser.error(f"results: {arguments.results}: not a result file of pytest-benchmark ({error!r})")
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
