"""A websocket client against an echo: sends messages, wants each back, says how the socket ended."""

import argparse
import asyncio
import json
import ssl
import sys

import websockets


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--ca", help="roots to trust, PEM")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--connect", help="HOST:PORT to connect to, whatever the URL says")
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--protocol", action="append", help="subprotocol to offer")
    parser.add_argument("--hold", type=float, default=0, help="seconds to stay open, or until the other side closes")
    return parser.parse_args()


def tls(args):
    if not args.url.startswith("wss:"):
        return None
    context = ssl.create_default_context(cafile=args.ca)
    if args.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def run(args):
    options = {"ssl": tls(args), "subprotocols": args.protocol, "max_size": None, "proxy": None}
    if args.connect:
        options["host"], port = args.connect.rsplit(":", 1)
        options["port"] = int(port)
    echoed = 0
    async with websockets.connect(args.url, **options) as socket:
        for number in range(args.messages):
            # Text and binary in turn.
            text = f"{number}:".ljust(args.size, "x")
            message = text if number % 2 == 0 else text.encode()
            await socket.send(message)
            if await asyncio.wait_for(socket.recv(), 10) != message:
                raise SystemExit("another message came back")
            echoed += 1
        await asyncio.wait_for(await socket.ping(), 10)
        closed_by = "us"
        if args.hold:
            try:
                await asyncio.wait_for(socket.wait_closed(), args.hold)
                closed_by = "them"
            except asyncio.TimeoutError:
                pass
    return {
        "echoed": echoed,
        "protocol": socket.subprotocol,
        "closed_by": closed_by,
        "code": socket.close_code,
    }


def main():
    args = arguments()
    try:
        print(json.dumps(asyncio.run(run(args))))
    except (OSError, asyncio.TimeoutError, websockets.WebSocketException) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)


if __name__ == "__main__":
    main()
