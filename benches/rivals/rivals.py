"""Measures proxies side by side: the same backend, certificate and load for each, in alternated rounds.

CPU is what the kernel's scheduler counted for all threads of all of a proxy's processes (/proc/PID/task/*/schedstat),
divided by the requests that the load client saw succeed.
"""

import argparse
import collections
import json
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

import proxies
import report
from proxies import HOST, PASS, WS, free_port, wait_port

HERE = pathlib.Path(__file__).parent
REPO = HERE.parent.parent
TOOLS = REPO / "target/rivals/release"
KIB, MIB = 1 << 10, 1 << 20

Case = collections.namedtuple("Case", "name title need run")
Measured = collections.namedtuple("Measured", "requests per_second p50_ms p99_ms failed")


class World:
    """What all proxies share: certificate, backends, clients."""

    def __init__(self, directory, itsup):
        self.dir, self.itsup = directory, itsup
        directory.mkdir(parents=True, exist_ok=True)
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        names = ",".join(f"DNS:{name}" for name in (HOST, PASS, WS))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
            + ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName={names}", "-keyout", self.key, "-out", self.cert],
            check=True,
            capture_output=True,
        )
        self.backend, self.tls_backend, self.tls_backend_proxy, self.ws_backend = (free_port() for _ in range(4))
        self.backends = Backends(self, 1)
        self.backends.start()

    def stop(self):
        self.backends.stop()


class Backends(proxies.Proxy):
    """A static nginx, plain and TLS, and a websocket echo."""

    name = "backend"

    def start(self):
        world = self.world
        files = self.dir / "files"
        files.mkdir(exist_ok=True)
        (files / "1m").write_bytes(b"x" * MIB)
        (self.dir / "client_body").mkdir(exist_ok=True)
        locations = f"""location = /1k {{ default_type text/plain; return 200 "{'x' * KIB}"; }}
    location / {{ root {files}; }}"""
        self.nginx(
            "nginx",
            self.nginx_head()
            + f"""http {{ {self.nginx_http_head()}
  sendfile on; tcp_nopush on;
  server {{ listen 127.0.0.1:{world.backend} backlog=4096; {locations} }}
  server {{
    listen 127.0.0.1:{world.tls_backend} ssl; listen 127.0.0.1:{world.tls_backend_proxy} ssl proxy_protocol;
    {locations}
  }}
}}
""",
            world.backend,
        )
        self.spawn(str(TOOLS / "itsup-testd"), "--listen", f"127.0.0.1:{world.ws_backend}", port=world.ws_backend)


def h2load(proxy, seconds, host, path, port, *options):
    log = proxy.dir / "requests.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-D", str(seconds), f"--log-file={log}", f"--connect-to=127.0.0.1:{port}", *options]
    done = subprocess.run([*command, f"https://{host}{path}"], capture_output=True, text=True, timeout=seconds + 60)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
    if not counts or not log.exists():
        raise RuntimeError(f"h2load: {done.stdout[-300:]}{done.stderr[-300:]}")
    succeeded, failed, errored, late = map(int, counts.groups())
    # h2load cuts what is under way at the end; these are not failures of the proxy. 1.52 counts them as errored.
    took = []
    for line in log.read_text().splitlines():
        _, status, micros = line.split("\t")[:3]
        if status == "200":
            took.append(int(micros))
    took.sort()
    if not took:
        raise RuntimeError("no request succeeded")
    at = lambda share: took[min(len(took) - 1, int(len(took) * share))] / 1000
    return Measured(succeeded, succeeded / seconds, at(0.50), at(0.99), failed + late)


def load(proxy, command, seconds, host, port, *options):
    done = subprocess.run(
        [str(TOOLS / "itsup-load"), command, "--target", f"127.0.0.1:{port}", "--host", host, "--insecure"]
        + ["--seconds", str(seconds), *options],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    if not done.stdout:
        raise RuntimeError(done.stderr)
    counts = json.loads(done.stdout)
    if "--resume" in options and counts["resumed"] < counts["ok"] * 0.95:
        print(f"  {proxy.name}: only {counts['resumed']} of {counts['ok']} sessions were resumed", file=sys.stderr)
    if counts["failed"]:
        print(f"  {proxy.name}: {counts['failed']} failed: {counts['error']}", file=sys.stderr)
    return Measured(counts["ok"], counts["per_second"], counts["p50_ms"], counts["p99_ms"], counts["failed"])


CASES = [
    Case("h1", "h1 keep-alive, 1 KiB, 16 connections", "h1",
         lambda p, s: h2load(p, s, HOST, "/1k", p.https, "--h1", "-c16")),
    Case("h2", "h2, 1 KiB, 8 connections x 10 streams", "h2",
         lambda p, s: h2load(p, s, HOST, "/1k", p.https, "-c8", "-m10")),
    Case("new", "new connection, full TLS 1.3 handshake", "new",
         lambda p, s: load(p, "handshakes", s, HOST, p.https)),
    Case("resumed", "new connection, resumed, TLS 1.3", "resumed",
         lambda p, s: load(p, "handshakes", s, HOST, p.https, "--resume")),
    Case("resumed12", "new connection, resumed, TLS 1.2", "resumed",
         lambda p, s: load(p, "handshakes", s, HOST, p.https, "--resume", "--tls12")),
    Case("1m", "1 MiB body over TLS, 4 connections", "1m",
         lambda p, s: h2load(p, s, HOST, "/1m", p.https, "--h1", "-c4")),
    Case("pass", "passthrough, 1 KiB keep-alive, 16 connections", "pass",
         lambda p, s: h2load(p, s, PASS, "/1k", p.passthrough, "--h1", "-c16")),
    Case("pass1m", "passthrough, 1 MiB, 4 connections", "pass",
         lambda p, s: h2load(p, s, PASS, "/1m", p.passthrough, "--h1", "-c4")),
    Case("passnew", "passthrough, new connection", "pass",
         lambda p, s: load(p, "handshakes", s, PASS, p.passthrough)),
    Case("ws", "websocket message of 128 bytes, there and back, 16 connections", "ws",
         lambda p, s: load(p, "websocket", s, WS, p.https)),
]


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(stat.read_text().split()[0])
            except FileNotFoundError:
                pass
    return total / 1e9


def pss_kib(pids):
    total = 0
    for pid in pids:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: +(\d+) kB", rollup, re.M)[1])
    return total


def has(proxy, case):
    return proxy.has_passthrough if case.need == "pass" else case.need in proxy.supports


def check(proxy):
    """One request by curl: what is measured must be what was meant."""
    for _ in range(50):
        done = subprocess.run(
            ["curl", "-sk", "-m", "5", "--resolve", f"{HOST}:{proxy.https}:127.0.0.1"]
            + ["-w", " %{http_code} %{size_download}", "-o", "/dev/null", f"https://{HOST}:{proxy.https}/1k"],
            capture_output=True,
            text=True,
        )
        if done.stdout.strip() == f"200 {KIB}":
            return
        time.sleep(0.1)
    raise RuntimeError(f"{proxy.name} answers {done.stdout!r}; see {proxy.dir}/log")


def idle(proxy, count):
    """PSS in KiB with nothing to do, and more of it for each of `count` idle connections."""
    before = pss_kib(proxy.pids())
    client = subprocess.Popen(
        [str(TOOLS / "itsup-load"), "idle", "--target", f"127.0.0.1:{proxy.https}", "--host", HOST, "--insecure"]
        + ["--connections", str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        if not client.stdout.readline():
            raise RuntimeError("the idle client failed")
        time.sleep(1)
        after = pss_kib(proxy.pids())
    finally:
        client.stdin.close()
        client.wait(30)
    return {"idle_mib": before / 1024, "conn_kib": (after - before) / count, "full_mib": after / 1024}


def measure(proxy, cases, seconds, connections):
    results = {}
    proxy.start()
    try:
        check(proxy)
        # Memory first: a proxy that has just worked holds what it has freed.
        if connections:
            results["idle"] = idle(proxy, connections)
        for case in cases:
            if not has(proxy, case):
                continue
            # Long enough to fill pools and caches.
            case.run(proxy, 1)
            pids = proxy.pids()
            before = cpu_seconds(pids)
            got = case.run(proxy, seconds)
            micros = (cpu_seconds(pids) - before) * 1e6 / max(got.requests, 1)
            results[case.name] = got._asdict() | {"micros": micros}
            print(f"  {proxy.name:12} {case.name:8} {micros:8.1f} µs {got.per_second:9.0f}/s p99 {got.p99_ms:.2f} ms")
    finally:
        proxy.stop()
    return results


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--itsup", default="target/release/itsup")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--threads", default="1,2", help="workers or threads, each in a table of its own")
    parser.add_argument("--connections", type=int, default=2000, help="idle ones")
    parser.add_argument("--only", help="cases: " + ",".join([case.name for case in CASES] + ["idle"]))
    parser.add_argument("--proxies", default=",".join(proxies.ALL))
    parser.add_argument("--quick", action="store_true", help="one round of one second, one thread")
    parser.add_argument("--out", type=pathlib.Path, help="docs/performance.md where the run is a full one")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.threads = 1, 1, "1"
    return args


def main():
    args = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
    only = set(args.only.split(",")) if args.only else None
    cases = [case for case in CASES if only is None or case.name in only]
    connections = args.connections if only is None or "idle" in only else 0
    names = args.proxies.split(",")
    itsup = str((REPO / args.itsup).resolve())
    if "itsup" in names and not pathlib.Path(itsup).exists():
        sys.exit(f"{itsup} is not there; build it with bin/build-release.sh or leave it out with --proxies")
    world = World(REPO / "target/rivals/run", itsup)
    start = time.monotonic()
    # results[threads][proxy] is one dict for each round.
    results = {}
    try:
        for threads in map(int, args.threads.split(",")):
            table = results.setdefault(threads, {name: [] for name in names})
            for turn in range(args.rounds):
                # Each round begins with another proxy, so that none has always the same neighbour.
                for name in names[turn % len(names):] + names[: turn % len(names)]:
                    print(f"{threads} thread(s), round {turn + 1} of {args.rounds}: {name}")
                    table[name].append(measure(proxies.ALL[name](world, threads), cases, args.seconds, connections))
    finally:
        world.stop()
    medians = {threads: {name: median(rounds) for name, rounds in table.items()} for threads, table in results.items()}
    (REPO / "target/rivals/results.json").write_text(json.dumps({"rounds": results, "medians": medians}, indent=1))
    whole = only is None and not args.quick and names == list(proxies.ALL)
    out = args.out or REPO / ("docs/performance.md" if whole else "target/rivals/performance.md")
    out.parent.mkdir(exist_ok=True)
    out.write_text(report.render(medians, cases, args, sys.argv[1:], time.monotonic() - start))
    print(out.read_text())
    print(f"written to {out}")


def median(rounds):
    """Each number's median over the rounds."""
    merged = {}
    for case in {case for one in rounds for case in one}:
        values = [one[case] for one in rounds if case in one]
        merged[case] = {key: statistics.median(value[key] for value in values) for key in values[0]}
    return merged


if __name__ == "__main__":
    main()
