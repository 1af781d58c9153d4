"""An HTTP/2 client: requests at a time on one connection, with bodies, whose echoes must be the same."""

import argparse
import asyncio
import json
import ssl
import sys

import httpx


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of an echo")
    parser.add_argument("--ca", help="roots to trust, PEM")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--host", help="the name to ask for, in SNI and :authority")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--size", type=int, default=50_000)
    return parser.parse_args()


async def run(args):
    headers = {"host": args.host} if args.host else {}
    extensions = {"sni_hostname": args.host.split(":")[0]} if args.host else {}
    verify = ssl.create_default_context(cafile=args.ca)
    if args.insecure:
        verify.check_hostname = False
        verify.verify_mode = ssl.CERT_NONE
    async with httpx.AsyncClient(http1=False, http2=True, verify=verify, trust_env=False, timeout=20) as client:

        async def one(number):
            body = bytes([number % 256]) * args.size
            answer = await client.post(args.url, content=body, headers=headers, extensions=extensions)
            return answer.status_code == 200 and answer.http_version == "HTTP/2" and answer.content == body

        return sum(await asyncio.gather(*(one(number) for number in range(args.requests))))


def main():
    args = arguments()
    try:
        good = asyncio.run(run(args))
    except httpx.HTTPError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    print(json.dumps({"good": good, "requests": args.requests}))
    sys.exit(0 if good == args.requests else 1)


if __name__ == "__main__":
    main()
