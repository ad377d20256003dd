"""A rival in its own environment: `python -m bench.rivals.serve TOOL`, spoken to by lines.

Each line of standard input is a JSON object with a "do" and its arguments, each line of
standard output the answer: {"ok": ...} or {"error": text}. Only torch, the tool and the
network's class (a file of fsim that needs torch alone) are imported.

prepare  network, weights (file of a state dict), images (.npy, float32 (n, c, h, w)),
         threads: loads them, runs the images without faults
try      batch, layout, seconds: injections a second of one setting
choose   batch, layout: what `run` uses
run      seconds, seed: injects for about so long
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time

import numpy as np
import torch

from .sites import Sites

TOOLS = {"pytorchfi": "pytorchfi", "mrfi": "MRFI"}
"""Name here -> distribution."""


def build(network: str) -> torch.nn.Module:
    """The same class that fsim quantises."""
    if network == "resnet20":
        from fsim.nas.resnet import ResNet20 as make
    elif network == "resnet8":
        from fsim.nas.resnet import ResNet8 as make
    elif network == "mobilenet-v2":
        from fsim.nas.networks.mobilenet_v2 import MobileNetV2 as make
    else:
        raise ValueError(f"no such network: {network}")
    return make()


def outputs(model: torch.nn.Module, images: torch.Tensor) -> Sites:
    """The outputs of all convolutions, in the order in which they run."""
    seen = []

    def see(name, output):
        seen.append((name, tuple(output.shape[1:]), float(output.abs().max())))

    hooks = [
        module.register_forward_hook(lambda module, given, output, name=name: see(name, output))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return Sites(*zip(*seen))


class Server:
    def __init__(self, name: str):
        self.tool = importlib.import_module(f"bench.rivals.{name}_tool")
        self.version = importlib.metadata.version(TOOLS[name])
        self.settings: dict[tuple, tuple] = {}

    def prepare(self, network, weights, images, threads):
        torch.set_num_threads(threads)
        self.model = build(network)
        self.model.load_state_dict(torch.load(weights, weights_only=True))
        self.model.eval()
        self.images = torch.from_numpy(np.load(images))
        self.model(self.images)
        start = time.perf_counter()
        self.model(self.images)
        golden = time.perf_counter() - start
        self.sites = outputs(self.model, self.images)
        self.settings.clear()
        return {
            "version": self.version,
            "torch": torch.__version__,
            "layouts": list(self.tool.LAYOUTS),
            "outputs": int(self.sites.ends[-1]),
            "golden_seconds": golden,
        }

    def setting(self, batch, layout):
        """(tool, batches of images, their golden logits, their classes)."""
        if (batch, layout) not in self.settings:
            self.settings.clear()
            kind = torch.channels_last if layout == "channels last" else torch.contiguous_format
            model = self.model.to(memory_format=kind)
            count = len(self.images)
            at = np.arange(-(-count // batch) * batch) % count
            batches = [
                self.images[part].contiguous(memory_format=kind) for part in at.reshape(-1, batch)
            ]
            golden = [model(part) for part in batches]
            tool = self.tool.Tool(model, self.sites, batch, self.images.shape[1:])
            classes = [logits.argmax(1) for logits in golden]
            self.settings[batch, layout] = tool, batches, golden, classes
        return self.settings[batch, layout]

    def inject(self, batch, layout, seconds, seed):
        """Whole batches until the time is over: faults drawn, run, compared with golden."""
        tool, batches, golden, classes = self.setting(batch, layout)
        rng = np.random.default_rng(seed)
        count = differ = critical = 0
        start = time.perf_counter()
        while count == 0 or time.perf_counter() - start < seconds:
            number = count // batch % len(batches)
            logits = tool.run(batches[number], rng)
            differ += int((logits != golden[number]).any(1).sum())
            critical += int((logits.argmax(1) != classes[number]).sum())
            count += batch
        taken = time.perf_counter() - start
        return {"injections": count, "seconds": taken, "differ": differ, "critical": critical}

    def answer(self, do, **arguments):
        with torch.inference_mode():
            if do == "prepare":
                return self.prepare(**arguments)
            if do == "try":
                self.inject(arguments["batch"], arguments["layout"], 0, 0)
                return self.inject(seed=1, **arguments)
            if do == "choose":
                self.chosen = arguments["batch"], arguments["layout"]
                self.inject(*self.chosen, 0, 0)
                return {}
            if do == "run":
                return self.inject(*self.chosen, **arguments)
        raise ValueError(f"no such request: {do}")


def main(name: str) -> None:
    # What a tool prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = None
    for line in sys.stdin:
        try:
            server = server or Server(name)
            answer = {"ok": server.answer(**json.loads(line))}
        except Exception as error:  # the tool's as well: the bench goes on without it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
