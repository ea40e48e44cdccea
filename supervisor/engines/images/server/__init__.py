"""The image server: OpenAI's `POST /v1/images/generations` before a pipeline of diffusers. Imports nothing of ours.

It runs in the engine's environment (torch, diffusers, uvicorn, starlette; Python 3.10 or later), where this project
need not be installed, so it is started by its path: `python .../server --model DIR --port 8188`. The modules: `options`
reads the command line, `order` a request, `pipeline` loads and draws, `desk` lets one request at a time to the thread
of `worker`, `metrics` counts, `application` has the routes, `run` starts and stops it all.
"""
