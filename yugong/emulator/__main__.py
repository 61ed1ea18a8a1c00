"""`python -m yugong.emulator`: an emulator in a process of its own.

Prints one line of JSON on stdout when it listens, `{"url":…,"control":…,"keys":{org:[key,…]}}`; everything else goes
to stderr. Ends cleanly on SIGTERM and SIGINT.
"""

import argparse
import asyncio
import gc
import logging
import signal
import ssl
import sys

import orjson
import uvloop

from yugong.emulator.faults import FaultError
from yugong.emulator.server import Emulator
from yugong.emulator.spec import EmulatorSpec, FaultRule, Limits, SpecError

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: the port or a file cannot be had


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m yugong.emulator", description="An upstream as OpenAI is, with faults.")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=0, help="0 picks a free one")
    made.add_argument("--spec", metavar="FILE.json", help="the whole specification; the options below override it")
    made.add_argument("--orgs", type=int, metavar="N", help="N alike organisations instead")
    made.add_argument("--keys", type=int, default=1, metavar="N", help="keys of each of them")
    for name, what in (("rpm", "requests a minute"), ("tpm", "tokens a minute"), ("rpd", "requests a day")):
        made.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} of each of them")
    made.add_argument("--pieces", type=int, metavar="N", help="tokens of an answer")
    made.add_argument("--size", type=int, metavar="BYTES", help="bytes of each")
    made.add_argument("--interval-ms", type=float, metavar="MS", help="between the events of a stream")
    made.add_argument("--delay-ms", type=float, metavar="MS", help="before each answer")
    made.add_argument("--fault", action="append", default=[], metavar="KIND@SHARE", help="a fault by lot; repeatable")
    made.add_argument("--journal", metavar="FILE", help='where it is kept; "" for none')
    made.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files")
    return made


def spec_from(options: argparse.Namespace) -> EmulatorSpec:
    """The specification the options ask for; raises SpecError, OSError."""
    if options.spec:
        with open(options.spec, "rb") as file:
            try:
                spec = EmulatorSpec.from_document(orjson.loads(file.read()))
            except orjson.JSONDecodeError as error:
                raise SpecError(f"{options.spec}: {error}") from None
    elif options.orgs:
        limits = Limits(rpm=options.rpm, tpm=options.tpm, rpd=options.rpd)
        spec = EmulatorSpec.uniform(options.orgs, options.keys, limits)
    else:
        spec = EmulatorSpec.demo()
    given = {
        "pieces": options.pieces,
        "piece_size": options.size,
        "interval_ms": options.interval_ms,
        "delay_ms": options.delay_ms,
        "journal": options.journal,
    }
    for name, value in given.items():
        if value is not None:
            setattr(spec, name, value)
    rules = (text.rpartition("@") for text in options.fault)
    spec.faults += tuple(FaultRule(kind, float(share), seed=i) for i, (kind, _, share) in enumerate(rules))
    return spec


async def serve(spec: EmulatorSpec, options: argparse.Namespace) -> None:
    """Listen, say so, and wait for the signal to end."""
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
    emulator = Emulator(spec)
    url = await emulator.start(options.host, options.port, context)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    assert emulator.control is not None
    ready = {"url": url, "control": emulator.control.url, "keys": spec.keys()}
    sys.stdout.write(orjson.dumps(ready).decode() + "\n")
    sys.stdout.flush()
    gc.collect()
    gc.freeze()
    await ended.wait()
    await emulator.stop()


def main() -> int:
    options = parser().parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    try:
        uvloop.run(serve(spec_from(options), options))
    except (SpecError, FaultError, ValueError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
