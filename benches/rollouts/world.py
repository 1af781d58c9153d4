"""The application that is rolled over, and what is there of it."""

import dataclasses
import pathlib
import shutil
import subprocess
import tempfile
import time

HOST = "app.localhost"
NETWORK = "proxynet"
HEALTH = (
    'HEALTHCHECK --interval=1s --timeout=5s --retries=3 CMD ["/itsup-testd", "--check", "127.0.0.1:8080"]\n'
)


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclasses.dataclass
class Case:
    """How the application starts and ends."""

    name: str
    about: str
    health: bool = False
    on_term: str = "graceful"
    start_delay: str = "0ms"
    replicas: int = 1
    stop_grace: str = "10s"

    def environment(self, version):
        return {
            "TESTD_VERSION": str(version), "TESTD_ON_TERM": self.on_term, "TESTD_START_DELAY": self.start_delay,
        }


class World:
    """Images, the network, and containers of one project: all but the network go at the end."""

    project = "rollout-proof"

    def __init__(self, itsup, load, testd):
        self.itsup, self.load, self.testd = itsup, load, testd
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="rollout-proof-"))

    def __enter__(self):
        if subprocess.run(["docker", "network", "inspect", NETWORK], capture_output=True).returncode:
            run("docker", "network", "create", NETWORK)
        shutil.copy(self.testd, self.dir / "itsup-testd")
        for health in (False, True):
            text = "FROM scratch\nCOPY itsup-testd /itsup-testd\nENTRYPOINT [\"/itsup-testd\"]\n"
            (self.dir / "Dockerfile").write_text(text + (HEALTH if health else ""))
            run("docker", "build", "-q", "-t", self.image(health), self.dir)
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", f"/CN={HOST}", "-keyout", self.dir / "key.pem", "-out", self.dir / "cert.pem",
        )
        self.clear()
        return self

    def __exit__(self, *_):
        self.clear()
        shutil.rmtree(self.dir, ignore_errors=True)

    def image(self, health):
        # The registry is nobody, so that a pull fails at once.
        return f"127.0.0.1:1/rollout-proof{'-health' if health else ''}:1"

    def ids(self):
        return run("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}").split()

    def containers(self):
        return len(self.ids())

    def clear(self):
        ids = self.ids()
        if ids:
            run("docker", "rm", "-fv", *ids)

    def eventually(self, holds, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if holds():
                return True
            time.sleep(0.2)
        return False
