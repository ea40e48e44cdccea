"""A control plane on this host for Modal's own CLI (`programs` starts it) and container entrypoint (`container` does).

It answers the RPCs that `modal deploy`, `modal run` and a container need, and records every request. What only Modal's
servers do is played here, and this is the whole list: which secrets exist is the caller's word, images are recorded
and never built, nobody acts on the request for a snapshot, and an input waits for a container that the caller starts.

It listens on a Unix socket: gVisor refuses to save a TCP socket on which an event loop waits, and no proxy variable of
a restored environment comes between. So it survives a checkpoint of the sandbox in which it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import re
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server
from modal_proto import api_pb2 as pb
from modal_proto.api_grpc import ModalClientBase

BUILDER_VERSION = "2025.06"
CALLER = "x-local-task"  # request header: RPCs of containers do not say in their body which container calls
SUCCESS = pb.GenericResult.GENERIC_STATUS_SUCCESS
NOTED_ONLY = frozenset(
    {
        "AppClientDisconnect",
        "AppHeartbeat",
        "ClientHello",
        "ContainerCheckpoint",
        "ContainerHeartbeat",
        "ContainerHello",
        "ContainerServerLifecycleReady",
        "VolumeCommit",
        "VolumeReload",
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived; `task` is the calling container's, or empty for the CLI."""

    rpc: str
    task: str
    request: Any


@dataclass(slots=True)
class App:
    """What the control plane knows of one app; `published` is set once its deployment is complete."""

    app_id: str
    name: str
    functions: dict[str, pb.Function] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    published: pb.AppPublishRequest | None = None


class ControlPlane(AbstractContextManager["ControlPlane"]):
    """The server, on a thread of its own, and the record of all requests.

    Args:
        secrets: Names of the secrets that exist, each with its keys.
        any_secret: Every secret exists, with whatever keys are asked for.
        volumes: Names of the volumes that exist; a deploy may create more.
        folders: Where the content of a volume lies on this machine, by its name; of others no file can be read.
    """

    def __init__(
        self,
        *,
        secrets: Mapping[str, set[str]] | None = None,
        any_secret: bool = False,
        volumes: set[str] | None = None,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self.existing_secrets = dict(secrets or {})
        self.any_secret = any_secret
        self.folders = dict(folders or {})
        self.existing_volumes = {*(volumes or ()), *self.folders}
        self.calls: list[Call] = []
        self.unanswered: list[str] = []
        self.apps: dict[str, App] = {}
        self.images: dict[str, pb.Image] = {}
        self.mounts: dict[str, list[pb.MountFile]] = {}
        self.secrets: dict[str, pb.SecretGetOrCreateRequest] = {}
        self.volumes: dict[str, pb.VolumeGetOrCreateRequest] = {}
        self.news = threading.Condition()
        self._contents: dict[str, bytes] = {}
        self._inputs: dict[str, list[pb.FunctionGetInputsItem]] = {}
        self._outputs: dict[str, asyncio.Future[pb.FunctionGetOutputsItem]] = {}
        self._numbers = itertools.count(1)
        self._folder = tempfile.TemporaryDirectory(prefix="warmboot-plane-")
        path = f"{self._folder.name}/socket"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self.url = f"unix://{path}"
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="control plane")

    def __enter__(self) -> Self:
        self._socket.listen()  # a client that comes before the loop runs waits in the backlog
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._folder.cleanup()

    # What a caller asks

    def app(self, name: str = "") -> App:
        """The app of that name, or the only one."""
        if name:
            return self.apps[name]
        (only,) = self.apps.values()
        return only

    def commands(self, image_id: str) -> list[str]:
        """The Dockerfile commands of an image and of the images below it, lowest first."""
        image = self.images[image_id]
        below = [line for base in image.base_images for line in self.commands(base.image_id)]
        return [*below, *image.dockerfile_commands]

    def sources(self, function: pb.Function) -> dict[str, bytes]:
        """The files that a function's containers have from this machine: path in the container -> content."""
        files = [file for mount_id in function.mount_ids for file in self.mounts[mount_id]]
        return {file.filename: self._contents[file.sha256_hex] for file in files}

    def image_env(self, image_id: str) -> dict[str, str]:
        """The environment that an image's `ENV` lines set."""
        lines = [line.removeprefix("ENV ") for line in self.commands(image_id) if line.startswith("ENV ")]
        return dict(word.split("=", 1) for line in lines for word in shlex.split(line) if "=" in word)

    def owner(self, function_id: str) -> tuple[App, str]:
        """The app and the name of a function."""
        owned = ((app, name, i) for app in self.apps.values() for name, i in app.function_ids.items())
        return next((app, name) for app, name, i in owned if i == function_id)

    def seen(self, rpc: str, task: str | None = None) -> list[Any]:
        """The requests of one RPC so far, from one container or from all callers."""
        with self.news:
            return [call.request for call in self.calls if call.rpc == rpc and task in (None, call.task)]

    # The service

    def _run(self) -> None:
        async def serve() -> None:
            server = Server([_Service(self)])
            await server.start(sock=self._socket)
            await self._closing.wait()
            server.close()
            await server.wait_closed()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve())

    async def answer(self, rpc: str, reply_type: Any, stream: Any) -> None:
        """Records a request and sends what the method of the RPC's name returns."""
        request = await stream.recv_message()
        with self.news:
            self.calls.append(Call(rpc, str(stream.metadata.get(CALLER, "")), request))
            self.news.notify_all()
        method = getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower(), None)
        if method is None and rpc not in NOTED_ONLY:
            self.unanswered.append(rpc)
            raise GRPCError(Status.UNIMPLEMENTED, f"the local control plane has no answer to {rpc}")
        reply = method(request) if method else None
        if inspect.isawaitable(reply):
            reply = await reply
        await stream.send_message(reply_type() if reply is None else reply)

    def new_id(self, prefix: str) -> str:
        """An id that nothing else has."""
        return f"{prefix}-{next(self._numbers):06}"

    def _app_of(self, app_id: str) -> App:
        return next(app for app in self.apps.values() if app.app_id == app_id)

    def _environment_get_or_create(
        self, request: pb.EnvironmentGetOrCreateRequest
    ) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-main", metadata=metadata)

    def _app_get_by_deployment_name(
        self, request: pb.AppGetByDeploymentNameRequest
    ) -> pb.AppGetByDeploymentNameResponse:
        app = self.apps.get(request.name)
        return pb.AppGetByDeploymentNameResponse(app_id=app.app_id if app else "")

    def _app_get_layout(self, request: pb.AppGetLayoutRequest) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=self.layout(self._app_of(request.app_id)))

    def _app_create(self, request: pb.AppCreateRequest) -> pb.AppCreateResponse:
        app = self.apps[request.description] = App(self.new_id("ap"), request.description)
        return pb.AppCreateResponse(app_id=app.app_id, app_page_url=f"{self.url}/apps/{app.name}")

    def _app_publish(self, request: pb.AppPublishRequest) -> pb.AppPublishResponse:
        app = self._app_of(request.app_id)
        same = app.published is not None and app.published.definition_ids == request.definition_ids
        app.published = request
        # No time means that nothing has changed, and that nothing was deployed.
        return pb.AppPublishResponse(url=f"{self.url}/apps/{app.name}", deployed_at=0 if same else time.time())

    def _app_get_logs(self, _: pb.AppGetLogsRequest) -> pb.TaskLogsBatch:
        return pb.TaskLogsBatch(app_done=True)

    def _function_precreate(self, request: pb.FunctionPrecreateRequest) -> pb.FunctionPrecreateResponse:
        app = self._app_of(request.app_id)
        function_id = request.existing_function_id or self.new_id("fu")
        app.function_ids[request.function_name] = function_id
        metadata = pb.FunctionHandleMetadata(function_name=request.function_name, function_type=request.function_type)
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    def _function_create(self, request: pb.FunctionCreateRequest) -> pb.FunctionCreateResponse:
        app = self._app_of(request.app_id)
        data = request.function_data  # comes filled where the GPU is a list of choices, one ranked function for each
        if not data.ranked_functions:
            data.ranked_functions.add(function=request.function)
            data.http_config.CopyFrom(request.function.http_config)
            data.autoscaler_settings.CopyFrom(request.function.autoscaler_settings)
        function = data.ranked_functions[0].function
        function.mount_ids.sort()  # they come in any order
        app.functions[function.function_name] = function
        return pb.FunctionCreateResponse(
            function_id=app.function_ids[function.function_name],
            function=function,
            function_data=data,
            handle_metadata=_handle_metadata(function),
        )

    def _image_get_or_create(self, request: pb.ImageGetOrCreateRequest) -> pb.ImageGetOrCreateResponse:
        image_id = _id_of("im", request.image)  # Modal too gives the same image for the same commands
        self.images[image_id] = request.image
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        metadata = pb.ImageMetadata(image_builder_version=BUILDER_VERSION, python_version_info=version)
        result = pb.GenericResult(status=SUCCESS)
        return pb.ImageGetOrCreateResponse(image_id=image_id, result=result, metadata=metadata)

    def _mount_batched_check_existence(
        self, request: pb.MountBatchedCheckExistenceRequest
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self._contents]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def _mount_put_file(self, request: pb.MountPutFileRequest) -> pb.MountPutFileResponse:
        self._contents[request.sha256_hex] = request.data
        return pb.MountPutFileResponse(exists=True)

    def _mount_get_or_create(self, request: pb.MountGetOrCreateRequest) -> pb.MountGetOrCreateResponse:
        # Files come in any order, and belong to the app's own run.
        content = sorted(request.files, key=lambda file: file.filename)
        mount_id = _id_of("mo", pb.MountGetOrCreateRequest(deployment_name=request.deployment_name, files=content))
        self.mounts[mount_id] = list(request.files)  # none for Modal's own client, which is mounted by its name
        return pb.MountGetOrCreateResponse(mount_id=mount_id)

    def _volume_get_or_create(self, request: pb.VolumeGetOrCreateRequest) -> pb.VolumeGetOrCreateResponse:
        name = request.deployment_name
        if name not in self.existing_volumes and not request.object_creation_type:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found in environment 'main'")
        self.existing_volumes.add(name)
        volume_id = next((i for i, known in self.volumes.items() if known.deployment_name == name), self.new_id("vo"))
        self.volumes[volume_id] = request
        metadata = pb.VolumeMetadata(name=name, version=request.version)
        return pb.VolumeGetOrCreateResponse(volume_id=volume_id, version=request.version, metadata=metadata)

    async def _volume_get_file2(self, request: pb.VolumeGetFile2Request) -> pb.VolumeGetFile2Response:
        name = self.volumes[request.volume_id].deployment_name
        path = self.folders[name] / request.path if name in self.folders else None
        if path is None or not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"no file {request.path!r} in the volume {name!r}")
        content = path.read_bytes()
        url = await _serve_once(content)
        return pb.VolumeGetFile2Response(get_urls=[url], size=len(content), start=0, len=len(content))

    def _secret_get_or_create(self, request: pb.SecretGetOrCreateRequest) -> pb.SecretGetOrCreateResponse:
        name = request.deployment_name
        if not request.object_creation_type and not self.any_secret:
            if name not in self.existing_secrets:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
            if missing := sorted(set(request.required_keys) - self.existing_secrets[name]):
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' is missing key(s): {', '.join(missing)}")
        secret_id = _id_of("st", request)
        self.secrets[secret_id] = request
        return pb.SecretGetOrCreateResponse(secret_id=secret_id, metadata=pb.SecretMetadata(name=name))

    def _task_result(self, request: pb.TaskResultRequest) -> None:
        for call_id in self._outputs:  # a container that fails before its input ends the call that it was started for
            self._finish(call_id, request.result, pb.DATA_FORMAT_PICKLE)

    def _function_map(self, request: pb.FunctionMapRequest) -> pb.FunctionMapResponse:
        call_id = self.new_id("fc")
        self._outputs[call_id] = self._loop.create_future()
        (given,) = request.pipelined_inputs  # one call has one input; maps are not played here
        item = pb.FunctionGetInputsItem(input_id=call_id, input=given.input, function_call_id=call_id)
        self._inputs.setdefault(request.function_id, []).append(item)
        accepted = pb.FunctionPutInputsResponseItem(input_id=call_id)
        return pb.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=[accepted])

    def _function_get_inputs(self, request: pb.FunctionGetInputsRequest) -> pb.FunctionGetInputsResponse:
        waiting = self._inputs.get(request.function_id)
        item = waiting.pop(0) if waiting else pb.FunctionGetInputsItem(kill_switch=True)
        return pb.FunctionGetInputsResponse(inputs=[item])

    def _function_put_outputs(self, request: pb.FunctionPutOutputsRequest) -> None:
        for output in request.outputs:
            self._finish(output.input_id, output.result, output.data_format)

    def _finish(self, call_id: str, result: pb.GenericResult, data_format: pb.DataFormat.ValueType) -> None:
        if not self._outputs[call_id].done():
            self._outputs[call_id].set_result(pb.FunctionGetOutputsItem(result=result, data_format=data_format))

    async def _function_get_outputs(self, request: pb.FunctionGetOutputsRequest) -> pb.FunctionGetOutputsResponse:
        item = await asyncio.shield(self._outputs[request.function_call_id])
        return pb.FunctionGetOutputsResponse(idxs=[0], outputs=[item], num_unfinished_inputs=0)

    def layout(self, app: App) -> pb.AppLayout:
        """The objects of an app, as a container or a second deploy receives them."""
        functions = [
            pb.Object(object_id=app.function_ids[name], function_handle_metadata=_handle_metadata(function))
            for name, function in app.functions.items()
        ]
        volumes = [
            pb.Object(object_id=i, volume_metadata=pb.VolumeMetadata(name=v.deployment_name, version=v.version))
            for i, v in self.volumes.items()
        ]
        others = [pb.Object(object_id=i) for i in (*self.secrets, *self.images, *self.mounts)]
        return pb.AppLayout(objects=[*functions, *volumes, *others], function_ids=app.function_ids)


class _Service:
    """Modal's service with one method behind all of its RPCs."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def __getattr__(self, rpc: str) -> Any:
        return rpc

    def __mapping__(self) -> dict[str, Handler]:
        mapping: dict[str, Handler] = ModalClientBase.__mapping__(self)  # type: ignore[arg-type]
        answer = self._plane.answer
        return {
            path: handler._replace(func=partial(answer, path.rpartition("/")[2], handler.reply_type))
            for path, handler in mapping.items()
        }


async def _serve_once(content: bytes) -> str:
    """A URL at which the content can be fetched once; a checkpoint then finds no socket of it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + content)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def _id_of(prefix: str, message: Any) -> str:
    """An id that is the same for the same content."""
    return f"{prefix}-{hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()[:16]}"


def _handle_metadata(function: pb.Function) -> pb.FunctionHandleMetadata:
    return pb.FunctionHandleMetadata(
        function_name=function.function_name,
        function_type=function.function_type,
        is_method=function.is_method,
        definition_id=_id_of("de", function),
        class_parameter_info=function.class_parameter_info,
        function_schema=function.function_schema,
        supported_input_formats=function.supported_input_formats,
        supported_output_formats=function.supported_output_formats,
    )
