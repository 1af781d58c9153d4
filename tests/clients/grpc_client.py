"""A gRPC client against `test.Echo`, on bytes: unary, server stream, both streams, a failure's status."""

import argparse
import json
import sys
import time

import grpc


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="HOST:PORT to connect to")
    parser.add_argument("--ca", help="roots to trust, PEM")
    parser.add_argument("--authority", help="the name to ask for, in SNI and :authority")
    parser.add_argument("--plain", action="store_true", help="h2c")
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=20)
    return parser.parse_args()


def channel(args):
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    if args.plain:
        if args.authority:
            options.append(("grpc.default_authority", args.authority))
        return grpc.insecure_channel(args.target, options)
    if args.authority:
        options.append(("grpc.ssl_target_name_override", args.authority))
    roots = open(args.ca, "rb").read() if args.ca else None
    return grpc.secure_channel(args.target, grpc.ssl_channel_credentials(roots), options)


def run(args):
    count, limit = args.messages, args.timeout
    with channel(args) as link:
        result = {}
        payloads = [b"x" * (size * 1000) for size in range(count)]

        unary = link.unary_unary("/test.Echo/Unary")
        result["unary"] = sum(unary(payload, timeout=limit) == payload for payload in payloads)

        server = link.unary_stream("/test.Echo/Server")
        result["server"] = sum(
            answer == str(i).encode() for i, answer in enumerate(server(str(count).encode(), timeout=limit))
        )

        # Each message goes out only after the answer to the one before: a proxy that buffers hangs here.
        bidi = link.stream_stream("/test.Echo/Bidi")
        answers, sent = [], []

        def questions():
            for i, payload in enumerate(payloads):
                while len(answers) < i:
                    time.sleep(0.001)
                sent.append(payload)
                yield payload

        for answer in bidi(questions(), timeout=limit):
            answers.append(answer)
        result["bidi"] = sum(a == b for a, b in zip(answers, sent))

        try:
            link.unary_unary("/test.Echo/Fail")(b"", timeout=limit)
            result["fail"] = "OK"
        except grpc.RpcError as error:
            result["fail"] = error.code().name
    good = result == {"unary": count, "server": count, "bidi": count, "fail": "INTERNAL"}
    return result, good


def main():
    args = arguments()
    try:
        result, good = run(args)
    except grpc.RpcError as error:
        result, good = {"error": f"{error.code().name}: {error.details()}"}, False
    print(json.dumps(result))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
