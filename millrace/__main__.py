"""Where the `millrace` command begins: with so little that Ctrl-C is taken however early it comes."""

import os
import signal
import sys


def main() -> int:
    # While modules are read, a KeyboardInterrupt is printed, or lost in what reads them. Nothing has begun
    # yet that would have to be ended well. Where Ctrl-C is ignored, it stays so.
    early = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if early:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from millrace import cli  # noqa: PLC0415

    if early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
