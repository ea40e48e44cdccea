"""The fake server itself: loads, listens, routes and answers as its flags say."""

# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time

from fakes.server.completions import compose, form_of
from fakes.server.output import wait_for_file, wait_forever
from fakes.server.wire import Reply, error_reply, json_reply, read_requests, send

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

    from fakes.server.flags import Options
    from fakes.server.gpu import GpuWeights
    from fakes.server.output import Output
    from fakes.server.wire import Request


class Server:
    def __init__(self, options: Options, out: Output) -> None:
        self.options, self.out = options, out
        self.model_id = options.serve_model_id or options.alias or options.model
        self.slots = options.parallel if options.parallel > 0 else 4
        self.ready_at: float | None = None
        self.url = ""
        self.drift_file = "" if os.path.exists(options.answer_drift_file) else options.answer_drift_file
        self.lock = threading.Lock()
        self.routes: dict[tuple[str, str], Callable[[Request], Reply]] = {
            ("GET", "/props"): self.props,
            ("GET", "/v1/models"): self.models,
            ("GET", "/slots"): self.slot_list,
            ("GET", "/metrics"): self.metrics,
            ("POST", "/v1/chat/completions"): self.complete,
            ("POST", "/v1/completions"): self.complete,
            ("POST", "/v1/responses"): self.complete,
            ("POST", "/damage"): self.damage,
        }
        self.weights: GpuWeights | None = None
        self.task_at = 0.0  # of the last request that counts as work
        self.tickets = self.answered = self.processing = self.prompt_tokens = self.tokens = 0

    # binding, loading, dying

    def bind(self, listener: socket.socket) -> bool:
        """Whether that worked, which it may be planned not to."""
        o = self.options
        if o.bind_fails_once and not os.path.exists(o.bind_fails_once):
            open(o.bind_fails_once, "w").close()
            return False
        if o.bind_fails:
            return False
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError, OverflowError):
            listener.bind((o.host, 0 if o.wrong_port else o.port))
            listener.listen(512)
            return True
        return False

    def listen(self) -> None:
        listener, o = socket.socket(), self.options
        if not self.bind(listener):
            self.out.srv("start", f"couldn't bind HTTP server socket, hostname: {o.host}, port: {o.port}", "E")
            self.out.die(1)
        port = listener.getsockname()[1]
        self.url = f"http://{o.host}:{port}"
        self.out.srv("start", f"bound the HTTP server socket, hostname: {o.host}, port: {port}")
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def load(self) -> None:
        """Loading as planned, and then whatever is planned for afterwards."""
        o = self.options
        if not o.router:
            self.out.srv("load_model", f"loading model '{o.model}'")
            self.die_while_loading()
            if o.gpu_engine:
                self.load_weights()
            if o.read_model:
                self.read_model()
            else:
                time.sleep(o.load_s)
            if o.never_ready:
                wait_forever()
        if o.bind_late:
            self.listen()
        self.become_ready()
        if o.die_after_s is not None:
            time.sleep(o.die_after_s)
            self.out.die(o.exit_code)

    def die_while_loading(self) -> None:
        o = self.options
        if o.exit_while_loading is None and not o.signal_while_loading:
            return
        time.sleep(o.after_s)
        self.out.srv("load_model", "failed to load model, as planned", "E")
        if o.signal_while_loading:
            self.out.die_by(o.signal_while_loading)
        self.out.die(o.exit_while_loading or 0)

    def load_weights(self) -> None:
        from fakes.server.gpu import GpuWeights  # ctypes takes its time

        try:
            self.weights = GpuWeights(self.options.gpu_engine)
        except (OSError, ValueError) as error:
            self.out.srv("load_model", f"failed to load model: {error}", "E")
            self.out.die(1)

    def read_model(self) -> None:
        """Read the whole model at an even pace, so that it takes --load-s."""
        o, start, done = self.options, time.monotonic(), 0
        try:
            with open(o.model, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                stop = size if o.stall_at is None else int(size * o.stall_at)
                step = max(min(size // 50, 1 << 20), 1)
                while done < stop and (data := file.read(min(step, stop - done))):
                    done += len(data)
                    time.sleep(max(start + o.load_s * done / size - time.monotonic(), 0))
                if o.stall_at is not None:
                    wait_forever()
        except OSError as error:
            self.out.srv("load_model", f"failed to load model, '{o.model}': {error.strerror}", "E")
            self.out.die(1)

    def become_ready(self) -> None:
        o = self.options
        if not o.hang:
            self.out.stamp("ready")  # first: once it is ready, somebody may see that, and end us
        self.ready_at = self.task_at = time.monotonic()
        self.out.log("main: model loaded")
        self.out.srv("init", f"listening on {self.url}")
        if not o.no_ready_line:
            self.out.log(f"main: server is listening on {self.url} - starting the main loop")
        self.out.srv("update_slots", "all slots are idle")
        if o.close_stdio:
            self.out.close_stdio()

    def ready_for(self, seconds: float | None) -> bool:
        """Whether that much time has passed since ready; never when no time is given."""
        ready = self.ready_at
        return seconds is not None and ready is not None and time.monotonic() >= ready + seconds

    # connections

    def accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client:
            try:
                for request in read_requests(client):
                    reply = self.route(request)
                    send(client, reply, request.keep_alive)
                    if request.path.endswith(("/completions", "/responses")) and reply.status == 200:
                        self.count_answer()
                    if reply.cut or not request.keep_alive:
                        break
            except (OSError, ValueError):
                pass  # the client went away or talks no HTTP

    def count_answer(self) -> None:
        o = self.options
        with self.lock:
            self.answered += 1
            if self.answered == o.exit_after_requests:
                self.out.die(o.exit_code)
            if self.answered == o.signal_after_requests:
                self.out.die_by(o.signal)

    # routes

    def route(self, request: Request) -> Reply:
        if self.options.hang or self.ready_for(self.options.hang_after_ready):
            wait_forever()
        healthy = request.path in ("/health", "/v1/health")
        if not healthy and not self.authorised(request):
            return error_reply(401, "authentication_error", "Invalid API Key")
        if self.ready_at is None:
            return error_reply(503, "unavailable_error", "Loading model")
        if healthy and self.ready_for(self.options.health_fails_after):
            return error_reply(500, "server_error", "the planned failure")
        if healthy:
            return json_reply({"status": "ok"})
        handler = self.routes.get((request.method, request.path))
        return handler(request) if handler else error_reply(404, "not_found_error", "File Not Found")

    def authorised(self, request: Request) -> bool:
        o, headers = self.options, request.headers
        if o.reject_key or o.open or not o.api_key:
            return not o.reject_key
        if o.public_models and request.path == "/v1/models":
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        return headers.get("x-api-key") in o.api_key or (kind == "Bearer" and bearer in o.api_key)

    def props(self, _: Request) -> Reply:
        template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        if self.options.chat_template_file:
            with open(self.options.chat_template_file, encoding="utf-8") as file:
                template = file.read()
        body = {"total_slots": self.slots, "model_alias": self.model_id, "model_path": self.options.model}
        body["default_generation_settings"] = {"n_ctx": self.options.ctx_size // self.slots}
        body["is_sleeping"] = self.asleep()
        body["modalities"] = {"vision": bool(self.options.mmproj), "audio": False}
        return json_reply({**body, "chat_template": template, "build_info": "b9940-fake"})

    def models(self, _: Request) -> Reply:
        name = self.model_id
        card = {"name": name, "model": name, "type": "model", "capabilities": ["completion"]}
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "llamacpp", "meta": {}}
        lists = ([], []) if self.options.router else ([card], [entry])
        return json_reply({"models": lists[0], "object": "list", "data": lists[1]})

    def asleep(self) -> bool:
        """As llama-server does with --sleep-idle-seconds: /health, /props, /models and /metrics wake nobody."""
        idle_s = self.options.sleep_idle_seconds
        return idle_s > 0 and not self.processing and time.monotonic() - self.task_at > idle_s

    def wake(self) -> None:
        if self.asleep():
            self.out.srv("handle_sleep", "server is exiting sleeping state")
        self.task_at = time.monotonic()

    def slot_list(self, _: Request) -> Reply:
        self.wake()
        return json_reply([{"id": i, "is_processing": i < self.processing} for i in range(self.slots)])

    def metrics(self, _: Request) -> Reply:
        if not self.options.metrics:
            return error_reply(501, "not_supported_error", "This server does not support metrics endpoint.")
        rows = [
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed.", self.prompt_tokens),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed.", self.tokens),
            ("n_decode_total", "counter", "Total number of llama_decode() calls", self.tokens),
            ("requests_processing", "gauge", "Number of requests processing.", self.processing),
        ]
        text = "".join(f"# HELP llamacpp:{n} {h}\n# TYPE llamacpp:{n} {k}\nllamacpp:{n} {v}\n" for n, k, h, v in rows)
        return Reply(200, [text.encode()], "text/plain; version=0.0.4")

    def damage(self, _: Request) -> Reply:
        found = self.weights is not None and self.weights.damage()
        return json_reply({"status": "damaged"}) if found else error_reply(409, "conflict", "there is no copy")

    def complete(self, request: Request) -> Reply:
        o = self.options
        if o.router:
            return error_reply(400, "invalid_request_error", "a router without models")
        try:
            asked = json.loads(request.body)
            message = compose(asked)
            form = form_of(request.path, asked)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return error_reply(400, "invalid_request_error", f"bad request: {error}")
        if o.reject_logprobs and asked.get("logprobs"):
            return error_reply(400, "invalid_request_error", "logprobs is not supported")
        if o.no_logprobs:
            asked.pop("logprobs", None)
        self.wake()
        with self.lock:
            self.tickets += 1
            self.processing += 1
            ticket = self.tickets
        if o.hang_completions_after is not None and ticket > o.hang_completions_after:
            wait_forever()
        time.sleep(o.slow_first_byte)
        wait_for_file(o.gate)
        head = {"id": f"chatcmpl-{ticket}", "created": 0, "model": asked.get("model") or self.model_id}
        odd = o.answer if ticket > o.answer_after else ""
        drifts = bool(self.drift_file) and os.path.exists(self.drift_file)
        if o.random_answers:
            message["content"] = f"Answer number {ticket}."
        elif (drifts and not o.logprob_drift) or (self.weights and not self.weights.intact()):
            message["content"] = "Well, something else."
        completion = form(asked, "/chat/" in request.path, message, head, odd)
        completion.logprob_drift = o.logprob_drift if drifts else 0.0
        with self.lock:
            self.processing -= 1
            self.task_at = time.monotonic()
            self.prompt_tokens += completion.usage["prompt_tokens"]
            self.tokens += completion.usage["completion_tokens"]
        return completion.reply()
