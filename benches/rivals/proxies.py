"""The proxies side by side: how each is configured and started. One class each; itsUP is one of them."""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

HOST, PASS, WS = "bench.localhost", "pass.localhost", "ws.localhost"
ROOT_USER = "user root;" if os.getuid() == 0 else ""
STREAM_MODULE = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_port(port, process):
    for _ in range(500):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args[0]} does not listen on {port}")


def descendants(pid):
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += descendants(int(child))
    return found


class Proxy:
    """A proxy under test. `https` is where TLS ends, `passthrough` where it goes through."""

    name = ""
    supports = {"h1", "h2", "new", "resumed", "1m", "ws", "idle"}
    has_passthrough = True

    def __init__(self, world, threads):
        self.world, self.threads = world, threads
        self.dir = world.dir / f"{self.name.replace(' ', '-')}-{threads}"
        self.dir.mkdir(parents=True, exist_ok=True)
        self.processes = []
        self.https, self.passthrough = free_port(), free_port()

    def spawn(self, *command, port=None, **options):
        log = open(self.dir / "log", "ab")
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        if port:
            wait_port(port, process)
        return process

    def write(self, name, text):
        path = self.dir / name
        path.write_text(text)
        return str(path)

    def pids(self):
        return [pid for process in self.processes for pid in descendants(process.pid)]

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []

    def nginx(self, name, text, port):
        prefix = self.dir / name
        prefix.mkdir(exist_ok=True)
        config = self.write(f"{name}.conf", text)
        self.spawn("nginx", "-p", str(prefix), "-e", "stderr", "-c", config, port=port)

    def nginx_head(self, threads=None):
        return (
            f"{STREAM_MODULE}\n{ROOT_USER}\ndaemon off; pid nginx.pid; error_log stderr crit;\n"
            f"worker_processes {threads or self.threads}; worker_rlimit_nofile 20000;\n"
            "events { worker_connections 9000; }\n"
        )

    def nginx_http_head(self):
        paths = "".join(
            f"{kind}_temp_path {self.dir}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return (
            f"{paths}access_log off; keepalive_requests 100000000; keepalive_timeout 300s;\n"
            f"ssl_certificate {self.world.cert}; ssl_certificate_key {self.world.key};\n"
            "ssl_protocols TLSv1.2 TLSv1.3;\n"
        )


class NginxPair(Proxy):
    """What itsUP replaces: stream with ssl_preread, then http, PROXY protocol v1 between."""

    name = "nginx pair"
    supports = {"h1", "new", "resumed", "1m", "idle"}

    def start(self):
        world, inner = self.world, free_port()
        self.passthrough = self.https
        self.nginx(
            "terminate",
            self.nginx_head()
            + f"""http {{ {self.nginx_http_head()}
  server {{
    listen 127.0.0.1:{inner} ssl proxy_protocol; server_name {HOST};
    set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;
    location / {{
      proxy_pass http://127.0.0.1:{world.backend};
      proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
""",
            inner,
        )
        self.nginx(
            "stream",
            self.nginx_head()
            + f"""stream {{
  map $ssl_preread_server_name $to {{ {HOST} 127.0.0.1:{inner}; {PASS} 127.0.0.1:{world.tls_backend_proxy}; }}
  server {{ listen 127.0.0.1:{self.https}; ssl_preread on; proxy_protocol on; proxy_pass $to; }}
}}
""",
            self.https,
        )


class NginxTuned(Proxy):
    """One nginx as a careful person sets it up: upstream keep-alive, session tickets, large buffers, reuseport."""

    name = "nginx tuned"

    def start(self):
        world = self.world
        reuse = "reuseport" if self.threads > 1 else ""
        forwarded = """proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;"""
        self.nginx(
            "nginx",
            self.nginx_head()
            + f"""http {{ {self.nginx_http_head()}
  ssl_session_cache shared:tls:10m; ssl_session_tickets on;
  proxy_buffer_size 8k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
  upstream backend {{ server 127.0.0.1:{world.backend}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{self.https} ssl http2 {reuse}; server_name {HOST};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; {forwarded} }}
  }}
  server {{
    listen 127.0.0.1:{self.https} ssl http2; server_name {WS};
    location / {{
      proxy_pass http://127.0.0.1:{world.ws_backend}; proxy_http_version 1.1; {forwarded}
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
    }}
  }}
}}
stream {{
  map $ssl_preread_server_name $to {{ {PASS} 127.0.0.1:{world.tls_backend}; }}
  server {{ listen 127.0.0.1:{self.passthrough} {reuse}; ssl_preread on; proxy_pass $to; }}
}}
""",
            self.https,
        )


class Haproxy(Proxy):
    name = "haproxy"

    def start(self):
        world = self.world
        pem = self.write("cert.pem", world.cert.read_text() + world.key.read_text())
        config = self.write(
            "haproxy.cfg",
            f"""global
  nbthread {self.threads}
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
frontend https
  bind 127.0.0.1:{self.https} ssl crt {pem} alpn h2,http/1.1
  option forwardfor
  http-request set-header X-Forwarded-Proto https
  use_backend ws if {{ hdr(host) -i {WS} }}
  default_backend backend
backend backend
  server b 127.0.0.1:{world.backend}
backend ws
  server w 127.0.0.1:{world.ws_backend}
frontend passthrough
  mode tcp
  bind 127.0.0.1:{self.passthrough}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend passthrough if {{ req.ssl_sni -i {PASS} }}
backend passthrough
  mode tcp
  server p 127.0.0.1:{world.tls_backend}
""",
        )
        self.spawn("haproxy", "-db", "-f", config, port=self.https)


class Caddy(Proxy):
    name = "caddy"
    has_passthrough = False

    def start(self):
        world = self.world
        tls = f"tls {world.cert} {world.key}"
        config = self.write(
            "Caddyfile",
            f"""{{
  admin off
  auto_https off
  servers {{
    protocols h1 h2
  }}
}}
https://{HOST}:{self.https} {{
  bind 127.0.0.1
  {tls}
  reverse_proxy 127.0.0.1:{world.backend}
}}
https://{WS}:{self.https} {{
  bind 127.0.0.1
  {tls}
  reverse_proxy 127.0.0.1:{world.ws_backend}
}}
""",
        )
        home = str(self.dir)
        env = os.environ | {"GOMAXPROCS": str(self.threads), "HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        self.spawn("caddy", "run", "--adapter", "caddyfile", "--config", config, env=env, port=self.https)


class Itsup(Proxy):
    name = "itsUP"

    def start(self):
        world = self.world
        for domain in (HOST, WS):
            folder = self.dir / "certs" / domain
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "fullchain.pem").write_text(world.cert.read_text())
            (folder / "privkey.pem").write_text(world.key.read_text())
        service = "services: [{{ name: 127.0.0.1, port: {} }}]"
        self.write(
            "db.yml",
            f"""projects:
  - name: bench
    domain: {HOST}
    {service.format(world.backend)}
  - name: ws
    domain: {WS}
    {service.format(world.ws_backend)}
  - name: pass
    domain: {PASS}
    services: [{{ name: 127.0.0.1, port: {world.tls_backend}, passthrough: true }}]
""",
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("ITSUP_")} | {
            "ITSUP_HTTP": "127.0.0.1:0",
            "ITSUP_HTTPS": "127.0.0.1:0",
            "ITSUP_API": "off",
            "ITSUP_ACCESS_LOG": "off",
            "ITSUP_DOCKER": "off",
            "ITSUP_GRACE": "1s",
            "ITSUP_THREADS": str(self.threads),
        }
        log = open(self.dir / "log", "ab")
        process = subprocess.Popen(
            [world.itsup, "--root", str(self.dir), "--json", "run"], stdout=subprocess.PIPE, stderr=log, env=env
        )
        self.processes.append(process)
        self.https = self.passthrough = ready_port(process)


def ready_port(process):
    """The TLS port in itsUP's ready line, the first line on its standard output that is JSON with `https`."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and select.select([process.stdout], [], [], 10)[0]:
        line = process.stdout.readline()
        if not line:
            break
        try:
            ready = json.loads(line)
        except ValueError:
            continue
        address = ready.get("https") if isinstance(ready, dict) else None
        if address:
            address = address[0] if isinstance(address, list) else address
            return int(str(address).rsplit(":", 1)[1])
    raise RuntimeError("itsUP printed no ready line")


ALL = {"pair": NginxPair, "nginx": NginxTuned, "haproxy": Haproxy, "caddy": Caddy, "itsup": Itsup}
