#!/usr/bin/env python3
"""A stand-in for llama-server that starts in a few milliseconds and misbehaves on demand.

It takes the llama-server flags in LLAMA_FLAGS (--help lists them). --host, --port, --model, --alias, --api-key,
--ctx-size, --parallel, --metrics, --mmproj, --sleep-idle-seconds (fractions too) and --chat-template-file take effect;
the others do nothing. Any other flag is an error, except the faults below. Times are seconds and may be fractions; logs
go to stderr, noise to stdout.

About the fake itself
  --help-omit FLAG              FLAG is unknown to this "build" (repeatable; or FAKE_HELP_OMIT=--a,--b)
  --stamp FILE                  append "ready <monotonic>" once healthy and "died <monotonic>" before a planned death
Loading
  --load-s S                    health says 503 for S seconds      --bind-late       no socket until loaded
  --never-ready                 loading never ends                 --no-ready-line   no "server is listening" line
  --read-model                  read the model file, spread over --load-s
  --stall-at FRACTION           with --read-model: stop reading there, for ever
  --exit-while-loading CODE     exit during loading, --after-s S (0.05) in; --die-while-loading means CODE 1
  --signal-while-loading NAME   the same, but raise the signal NAME on itself
  --router                      healthy at once, without a model: /v1/models is empty, completions are refused
  --wrong-port                  listen on a port of the kernel's choice instead of --port
  --bind-fails, --bind-fails-once FILE     fail to bind: always, or only as long as FILE does not exist
Dying and hanging
  --exit-after-requests N       exit with --exit-code C (1) once N completions were answered
  --signal-after-requests N     the same, by --signal NAME (SIGKILL)
  --die-after-s S               exit with --exit-code C (1) S seconds after ready
  --hang                        accept connections and answer nothing; --hang-after-ready S: from S after ready on
  --hang-completions            only completions hang; --hang-completions-after N: the first N still work
  --health-fails-after S        health says 500 from S seconds after ready on
  --ignore-sigterm, --slow-sigterm S       never exit on SIGTERM, or exit S seconds after it
  --grandchild                  fork a process that holds stdout and stderr for 300 s and ignores SIGTERM;
                                --grandchild-pid-file FILE tells its pid
Answers
  --answer KIND                 empty, whitespace, degenerate, null, error, invalid-json, cut, no-choices or html;
                                --answer-after N: only after N good answers
  --answer-drift-file FILE      completions say something else while FILE exists, unless it was there at the start;
                                --logprob-drift X: they say the same, with log-probabilities lower by X
  --random-answers              no two completions are the same
  --no-logprobs, --reject-logprobs         leave log-probabilities out, or refuse requests for them with a 400
  --slow-first-byte S           every completion waits S seconds
  --open, --reject-key          do not ask for the key that was given, or refuse every key
  --public-models               /v1/models asks for no key, as llama-server had it up to b9940
  --serve-model-id NAME         the model id to claim, whatever --alias says
  --gate FILE                   every completion waits until FILE exists
Holding what no snapshot can carry, from the start until FILE of --let-go FILE exists
  --map FILE                    map it (repeatable)                --hold-open FILE  open it (repeatable)
  --unlink-open                 delete what --hold-open names, once it is open
  --io-uring                    set up an io_uring
GPU memory
  --gpu-engine LIBRARY          hold weights there by libengine.so of fakes/cuda: completions say something else when
                                they are not what they were; POST /damage flips a bit of their copy in ordinary memory
Output
  --flood-lines-per-s R         80-byte lines (0: as fast as possible); --flood-bytes-total N: then "FLOOD DONE"
  --no-newline-mb M             M MiB in one line, then "NO NEWLINE DONE"
  --garbage                     NULs, broken UTF-8, colour codes and CRs, then "GARBAGE DONE"
  --echo-secret TEXT, --echo-secret-split TEXT     log TEXT, in one write or cut in two
  --log-jsonl, --ansi           log JSON objects, or in colour
  --close-stdio                 close stdout and stderr once ready
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

# Run by its path and isolated, it finds its parts itself. Importing pathlib would nearly double the start-up time.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from fakes.server.flags import STOP_SIGNALS, Options, parse
from fakes.server.holding import fork_grandchild, hold
from fakes.server.output import Output, make_noise
from fakes.server.server import Server

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import NoReturn


def run(options: Options, out: Output) -> None:
    if options.echo_secret:
        out.log(f"the secret is {options.echo_secret} as you see")
    if options.echo_secret_split:
        out.log_in_two_writes(options.echo_secret_split)
    threading.Thread(target=make_noise, args=(options,), daemon=True).start()
    server = Server(options, out)
    if not options.bind_late:
        server.listen()
    server.load()


def main() -> NoReturn:
    options = parse(sys.argv[1:])
    out = Output(options)
    # Every thread inherits the mask, so a signal stays pending until sigwait() takes it. A handler could miss one
    # that arrives just before the main thread goes to sleep, and a write to a full pipe cannot delay this wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.grandchild:
        fork_grandchild(options.grandchild_pid_file)
    _held = hold(options)
    threading.Thread(target=run, args=(options, out), daemon=True).start()
    got = signal.sigwait(STOP_SIGNALS)
    while got == signal.SIGTERM and options.ignore_sigterm:
        got = signal.sigwait(STOP_SIGNALS)
    if got == signal.SIGTERM and options.slow_sigterm:
        time.sleep(options.slow_sigterm)
        out.stamp("died")
    os._exit(0)


if __name__ == "__main__":
    main()
