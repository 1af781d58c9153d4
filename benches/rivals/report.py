"""The measurements as Markdown."""

import os
import pathlib
import platform
import shlex
import subprocess
import time

import proxies

# CPU per request that itsUP may take at most, as a ratio to tuned nginx.
REQUIRED = {
    "h1": 1.35, "h2": 1.35, "new": 0.70, "resumed": 1.25, "1m": 1.05, "pass": 1.10, "pass1m": 0.85, "passnew": 1.05,
}


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(ours, theirs):
    return f"{ours / theirs:.2f}" if ours is not None and theirs else "-"


def value(results, name, case, key):
    return results.get(name, {}).get(case, {}).get(key)


def ratios(results, case, key, lower=True):
    """itsUP to the pair, to tuned nginx, to the best rival (named)."""
    ours = value(results, "itsup", case, key)
    rivals = {name: value(results, name, case, key) for name in results if name != "itsup"}
    rivals = {name: got for name, got in rivals.items() if got}
    best = (min if lower else max)(rivals, key=rivals.get, default=None)
    to_best = ratio(ours, rivals.get(best))
    return [
        ratio(ours, rivals.get("pair")),
        ratio(ours, rivals.get("nginx")),
        f"{to_best} ({proxies.ALL[best].name})" if best and to_best != "-" else "-",
    ]


def cpu(results, cases, names, titles):
    rows = []
    for case in cases:
        ours, tuned = value(results, "itsup", case.name, "micros"), value(results, "nginx", case.name, "micros")
        limit = REQUIRED.get(case.name)
        verdict = "-" if limit is None else f"{limit:.2f}"
        if limit and ours and tuned:
            verdict += " met" if ours / tuned <= limit else " **missed**"
        rows.append(
            [case.title]
            + [number(value(results, name, case.name, "micros")) for name in names]
            + ratios(results, case.name, "micros")
            + [verdict]
        )
    head = ["CPU µs each"] + titles + ["itsUP / pair", "/ tuned nginx", "/ best rival", "required / tuned nginx"]
    return table(head, rows)


def speed(results, cases, names, titles):
    rows = [
        [case.title]
        + [number(value(results, name, case.name, "per_second")) for name in names]
        + ratios(results, case.name, "per_second", lower=False)
        for case in cases
    ]
    return table(["each second"] + titles + ["itsUP / pair", "/ tuned nginx", "/ best rival"], rows)


def latency(results, cases, names, titles):
    def cell(name, case):
        p50, p99 = (value(results, name, case, key) for key in ("p50_ms", "p99_ms"))
        return "-" if p50 is None else f"{p50:.2f} / {p99:.2f}"

    rows = [[case.title] + [cell(name, case.name) for name in names] + ratios(results, case.name, "p99_ms")
            for case in cases]
    return table(["ms, p50 / p99"] + titles + ["p99: itsUP / pair", "/ tuned nginx", "/ best rival"], rows)


def memory(results, names, titles, connections):
    kinds = [
        ("idle_mib", "PSS, idle, MiB"),
        ("full_mib", f"PSS with {connections:,} idle TLS connections, MiB"),
        ("conn_kib", "for each idle TLS connection, KiB"),
    ]
    rows = [
        [title] + [number(value(results, name, "idle", key)) for name in names] + ratios(results, "idle", key)
        for key, title in kinds
    ]
    return table(["memory"] + titles + ["itsUP / pair", "/ tuned nginx", "/ best rival"], rows)


def version(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def render(medians, cases, args, argv, seconds):
    command = shlex.join(["benches/rivals/run.sh", *without_itsup(argv)])
    parts = [
        "# Performance\n",
        f"Made by `{command}` on {time.strftime('%Y-%m-%d')} in {seconds / 60:.0f} minutes; run it again to remake this file.\n",
        f"Each number is the median of {args.rounds} alternated round(s) of {args.seconds} s, on {os.cpu_count()} cores of "
        f"{processor()}, Linux {platform.release()}, client, proxy and backend on the same machine, the same ECDSA P-256 "
        "certificate and the same nginx backend for all. CPU is the scheduler's count for all of a proxy's processes, "
        "divided by the requests that succeeded. New connections use X25519 and ask once. Failed requests are told below the tables. "
        f"{version('nginx', '-v')}; {version('haproxy', '-v').split(' - ')[0]}; caddy {version('caddy', 'version')}.\n",
        "The *pair* is stream with `ssl_preread` before http, PROXY protocol between, and has neither h2 nor websockets; "
        "*tuned* is one nginx with upstream keep-alive, tickets, reuseport and large buffers, and a stream listener on a "
        "port of its own for passthrough. caddy has no passthrough.\n",
    ]
    for threads, results in medians.items():
        names = [name for name in proxies.ALL if name in results]
        titles = [proxies.ALL[name].name for name in names]
        parts.append(f"## {threads} worker{'s' if threads > 1 else ''} or data thread{'s' if threads > 1 else ''}\n")
        if cases:
            parts += [make(results, cases, names, titles) for make in (cpu, speed, latency)]
        if any("idle" in results[name] for name in names):
            parts.append(memory(results, names, titles, args.connections))
        failed = [
            f"{proxies.ALL[name].name}: {got['failed']:.0f} of {got['requests']:.0f} in `{case}`"
            for name in names
            for case, got in sorted(results[name].items())
            if got.get("failed")
        ]
        parts.append(f"Failed: {'; '.join(failed) or 'none'}.\n")
    return "\n".join(parts)


def without_itsup(argv):
    """The arguments as a person would give them."""
    out, skip = [], False
    for word in argv:
        if skip or word == "--itsup":
            skip = word == "--itsup"
            continue
        out.append(word)
    return out
