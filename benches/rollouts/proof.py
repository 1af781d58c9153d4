"""Rollouts under load: itsUP, and the two nginx that it replaces, on the same application, engine and load."""

import argparse
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import rivals
from world import HOST, Case, World, run

# The pair speaks neither h2 nor websockets, and cuts event streams: it is spared them.
rivals.NginxPair.load = (
    "--h1 20 --h1-rate 260 --new-rate 40 --post 4 --post-rate 10 --post-bytes 100000 --slow-rate 3 --slow-ms 2000"
    " --timeout 30"
).split()

CASES = [
    Case("graceful", "ends gracefully, health check", health=True),
    Case("dies", "dies at SIGTERM, health check", health=True, on_term="die"),
    Case("ignores", "ignores SIGTERM", on_term="ignore", stop_grace="3s"),
    Case("plain", "ends gracefully, no health check"),
    Case("slow", "starts 2 s late, dies at SIGTERM, health check", health=True, on_term="die", start_delay="2s"),
    Case("three", "three replicas, ends gracefully, health check", health=True, replicas=3),
]

# 300 requests a second and more, of every kind.
LOAD = (
    "--h1 20 --h1-rate 200 --h2 4 --h2-streams 4 --h2-rate 60 --new-rate 40 --post 4 --post-rate 10 --post-bytes 100000"
    " --slow-rate 3 --slow-ms 2000 --events 1 --websockets 1 --timeout 30"
).split()

class Load:
    """The load generator, from the moment that all of it flows."""

    def __init__(self, program, port, arguments):
        command = [program, "run", "--target", f"127.0.0.1:{port}", "--host", HOST, "--insecure", "--seconds", "100000"]
        self.process = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=120)
        return json.loads(out.splitlines()[-1])


class Itsup:
    name = "itsUP"
    load = LOAD

    def __init__(self, world, case):
        self.world, self.case, self.version = world, case, 1
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="itsup-", dir="/tmp"))
        self.write()
        environment = {**os.environ, "ITSUP_GRACE": "2s"}
        listen = ["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--api", "off"]
        self.log = open(self.root / "log", "w")
        self.process = subprocess.Popen(
            [world.itsup, "--root", self.root, "--json", "run", *listen],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )
        ready = json.loads(self.process.stdout.readline())
        self.https = int(ready["https"].rsplit(":", 1)[1])
        self.cli("apply", world.project)

    def cli(self, *arguments):
        return run(self.world.itsup, "--root", self.root, *arguments)

    def write(self):
        case, project = self.case, self.world.project
        (self.root / "db.yml").write_text(
            f"projects:\n  - name: {project}\n    domain: {HOST}\n    entrypoint: web\n    services:\n"
            f"      - name: web\n        image: {self.world.image(case.health)}\n        replicas: {case.replicas}\n"
            f"        env: {json.dumps(case.environment(self.version))}\n"
            f"        compose: {{ stop_grace_period: {case.stop_grace} }}\n"
        )

    def roll(self):
        self.version += 1
        self.write()
        self.cli("apply", self.world.project)

    def settled(self):
        """Long drains end with the load; then exactly the wanted containers are there."""
        return self.world.containers() == self.case.replicas

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.root, ignore_errors=True)


def measure(world, case, subject, rounds):
    system = subject(world, case)
    try:
        load = Load(world.load, system.https, system.load)
        time.sleep(2)
        took = []
        for _ in range(rounds):
            began = time.monotonic()
            system.roll()
            took.append(time.monotonic() - began)
            time.sleep(1)
        report = load.end()
        left = world.eventually(system.settled)
    finally:
        system.stop()
        world.clear()
    report.update(rounds=rounds, seconds_each=sum(took) / len(took), settled=left)
    lost = report["failed"] + report["reused_reset"]
    print(
        f"{system.name:22} {case.name:9} {rounds:3} rollouts  {report['total']:7} requests  {lost:6} failed"
        f"  {report['lost_bytes']:8} bytes lost  {report['longest_gap_ms']:7.0f} ms gap  settled {left}",
        flush=True,
    )
    for example in report["examples"][:5] if subject is Itsup else []:
        print("   ", json.dumps(example), flush=True)
    return report


def row(case, report):
    lost = report["failed"] + report["reused_reset"]
    return [
        case.about, report["rounds"], f"{report['total']:,}", f"{lost:,}", f"{lost / report['rounds']:.0f}",
        f"{report['lost_bytes']:,}", f"{report['longest_gap_ms']:.0f} ms", f"{report['seconds_each']:.1f} s",
    ]


def table(rows):
    head = ["application", "rollouts", "requests", "failed", "per rollout", "bytes lost", "longest gap", "each took"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def document(results, arguments):
    engine = run("docker", "version", "--format", "{{.Server.Version}}").strip()
    compose = run("docker", "compose", "version", "--short").strip()
    text = (
        "# Rollouts under load\n\n"
        f"Written by `bin/rollout-proof.sh {' '.join(arguments)}`".rstrip() + f" on {time.strftime('%Y-%m-%d')}: "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Docker {engine}, compose {compose}, application, load and "
        "proxies all on this machine.\n\n"
        "The load is 300 requests a second and more: kept HTTP/1.1 connections, HTTP/2 streams, new TLS connections, POST with "
        "100 KB bodies, requests that take 2 s, an event stream and a websocket that are held throughout. A request that is "
        "answered by anything but a 2xx, with other or fewer bytes than promised, or after 30 s, has failed; a stream or a websocket "
        "that ends has failed as well. The gap is the longest time without a single request answered. Each rollout is one "
        "`itsup apply` of a changed `db.yml`, one second after the one before.\n\n## itsUP\n\n"
    )
    for name, rows in results.items():
        if name != Itsup.name:
            text += f"\n## {name}\n\n{rivals.ABOUT[name]}\n\n"
        text += table(rows)
    text += (
        "\n## What goes wrong on purpose\n\n"
        "`tests/rollout/` has what fails: never healthy, ended at the start, ended while watched, image missing, never "
        "listens, two rollouts at once, and `kill -9` of itsUP at every step. In each the old containers "
        "go on serving, nothing is left over, and the message says what happened.\n"
    )
    pathlib.Path("docs/rollouts.md").write_text(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--itsup", required=True, type=pathlib.Path)
    parser.add_argument("--load", required=True, type=pathlib.Path)
    parser.add_argument("--testd", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rivals-rounds", type=int, default=None)
    parser.add_argument("--cases", default="")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    wanted = [case for case in CASES if not options.cases or case.name in options.cases.split(",")]
    rival_rounds = options.rounds if options.rivals_rounds is None else options.rivals_rounds
    results, clean = {}, True
    with World(options.itsup.resolve(), options.load.resolve(), options.testd.resolve()) as world:
        for case in wanted:
            report = measure(world, case, Itsup, options.rounds)
            clean &= report["failed"] + report["reused_reset"] + report["lost_bytes"] == 0 and report["settled"]
            results.setdefault(Itsup.name, []).append(row(case, report))
            for rival in rivals.ALL if rival_rounds else []:
                report = measure(world, case, rival, rival_rounds)
                results.setdefault(rival.name, []).append(row(case, report))
    if not options.no_write:
        shown = sys.argv[1:]
        for flag in ("--itsup", "--load", "--testd"):
            at = shown.index(flag)
            del shown[at : at + 2]
        document(results, shown)
    if not clean:
        sys.exit("itsUP lost requests, or left something over")


if __name__ == "__main__":
    main()
