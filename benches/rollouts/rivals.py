"""What itsUP replaces: two nginx in series, `docker compose up --scale`, and reloads."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import shutil

from world import HOST, NETWORK, run


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class NginxPair:
    """Stream with ssl_preread, then http, PROXY protocol between; the addresses are read again at each reload."""

    load = []
    name = ""

    def __init__(self, world, case):
        self.world, self.case, self.version = world, case, 1
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="pair-"))
        self.https, self.inner = free_port(), free_port()
        self.processes = []
        self.up("--scale", f"web={case.replicas}")
        self.ready(self.world.ids())
        self.write()
        for name in ("terminate", "stream"):
            command = ["nginx", "-p", str(self.dir), "-e", "stderr", "-c", str(self.dir / f"{name}.conf")]
            log = open(self.dir / "log", "ab")
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for port in (self.inner, self.https):
            self.world.eventually(lambda: listens("127.0.0.1", port), 20)

    def compose(self, *arguments):
        return run("docker", "compose", "-p", self.world.project, "-f", self.dir / "docker-compose.yml", *arguments)

    def up(self, *arguments):
        case = self.case
        service = {
            "image": self.world.image(case.health), "environment": case.environment(self.version),
            "networks": [NETWORK], "stop_grace_period": case.stop_grace,
        }
        document = {"services": {"web": service}, "networks": {NETWORK: {"external": True}}}
        (self.dir / "docker-compose.yml").write_text(json.dumps(document))
        self.compose("up", "-d", "--no-recreate", "--pull", "never", *arguments)

    def addresses(self):
        form = '{{(index .NetworkSettings.Networks "%s").IPAddress}}' % NETWORK
        found = [run("docker", "inspect", "-f", form, one).strip() for one in self.world.ids()]
        return [address for address in found if address]

    def ready(self, ids):
        """Healthy where Docker can say so; else ten seconds, as `docker rollout` does."""
        if not self.case.health:
            time.sleep(10)
            return
        form = "{{.State.Health.Status}}"
        for one in ids:
            self.world.eventually(lambda: run("docker", "inspect", "-f", form, one).strip() == "healthy", 60)

    def write(self):
        user = "user root;" if os.getuid() == 0 else ""
        head = (
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
            f"{user} daemon off; error_log stderr crit; worker_processes 2; events {{ worker_connections 4096; }}\n"
        )
        paths = "".join(
            f"{kind}_temp_path {self.dir}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        servers = " ".join(f"server {address}:8080;" for address in self.addresses())
        (self.dir / "terminate.conf").write_text(
            head + f"""pid {self.dir}/terminate.pid;
http {{ {paths} access_log off;
  ssl_certificate {self.world.dir}/cert.pem; ssl_certificate_key {self.world.dir}/key.pem;
  upstream app {{ {servers} }}
  server {{ listen 127.0.0.1:{self.inner} ssl proxy_protocol; server_name {HOST};
    location / {{ proxy_pass http://app; proxy_set_header Host $host; }} }}
}}
"""
        )
        (self.dir / "stream.conf").write_text(
            head + f"""pid {self.dir}/stream.pid;
stream {{ proxy_timeout 3s;
  map $ssl_preread_server_name $to {{ {HOST} 127.0.0.1:{self.inner}; }}
  server {{ listen 127.0.0.1:{self.https}; ssl_preread on; proxy_protocol on; proxy_pass $to; }} }}
"""
        )

    def reload(self):
        self.write()
        for process in self.processes:
            process.send_signal(signal.SIGHUP)
        time.sleep(1)

    def settled(self):
        return self.world.containers() == self.case.replicas

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)

    def scale_up(self):
        self.version += 1
        old = self.world.ids()
        self.up("--scale", f"web={2 * self.case.replicas}")
        self.ready([one for one in self.world.ids() if one not in old])
        return old


class ScaleAndReload(NginxPair):
    name = "nginx pair, as it was"

    def roll(self):
        old = self.scale_up()
        run("docker", "stop", *old)
        run("docker", "rm", "-v", *old)
        self.reload()


class ReloadTwice(NginxPair):
    name = "nginx pair, reloaded before"

    def roll(self):
        old = self.scale_up()
        keep = self.world.ids
        self.world.ids = lambda: [one for one in keep() if one not in old]
        self.reload()
        self.world.ids = keep
        run("docker", "stop", *old)
        run("docker", "rm", "-v", *old)


def listens(host, port):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


ALL = [ScaleAndReload, ReloadTwice]
ABOUT = {
    ScaleAndReload.name: (
        "Twice as many containers, wait until they are healthy (10 s where there is no health check), stop and remove "
        "the old ones, reload nginx: the order of the tool that itsUP replaces. Without HTTP/2, websockets and event streams, "
        "which it cannot carry."
    ),
    ReloadTwice.name: (
        "The same, kinder: nginx is reloaded with the new addresses before the old containers are stopped."
    ),
}
