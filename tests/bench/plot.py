"""The distribution of the readiness lag, from the JSON: plot.py RESULTS PICTURE, in the peers' environment."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "warmboot"  # the same numbers give the same file
import matplotlib.pyplot as plt  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

report: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
for name, lags in report["samples"]["readiness_lag"].items():
    shown = sorted(max(lag, 1e-4) * 1000 for lag in lags)
    ours = name.startswith("warmboot")
    shares = [(number + 1) / len(shown) for number in range(len(shown))]
    axes.step(shown, shares, where="post", label=name, linewidth=2.5 if ours else 1.2)
axes.set_xscale("log")
axes.set_xlabel("from “can serve” to “known to be ready”, ms")
axes.set_ylabel("share of starts")
axes.set_title("Readiness lag")
axes.grid(visible=True, which="major", alpha=0.3)
axes.legend(fontsize="small", loc="best")
figure.savefig(sys.argv[2], metadata={"Date": None})
