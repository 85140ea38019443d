"""The child of _profile.py: opens the network of an evaluation, and measures it in a process that does nothing else."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from transfergrid.networks.finished import network_of_run
from transfergrid.paths import store_paths
from transfergrid.phases._profile import MARK, precisions
from transfergrid.phases.evaluate import network_from_file
from transfergrid.specs import PreprocessSpec, RunSpec, Runtime, from_dict, to_dict
from transfergrid.store.attempts import read_spec
from transfergrid.store.profiles import Profile, measured_run
from transfergrid.training.device import device_of, on_device, prepare_process
from transfergrid.training.profiling import AllocatedOn, GrownBy, profile

CPU = torch.device("cpu")


def main() -> None:
    """`python -m transfergrid.phases._profile_child`, with a spec and a runtime on standard input."""
    question = json.load(sys.stdin)
    profiles = profiles_of(from_dict(RunSpec, question["spec"]), from_dict(Runtime, question["runtime"]))
    print(MARK + json.dumps(to_dict(profiles)))


def profiles_of(spec: RunSpec, runtime: Runtime) -> list[Profile]:
    """On this CPU in each arithmetic, then on the GPU that runs of this runtime compute on, where there is one."""
    prepare_process(runtime)
    network, preprocess = _network_of(spec, runtime)
    sizes_px, sought_gpu = tuple(p.crop_px for p in preprocess), runtime.device != "cpu"
    with torch.inference_mode():  # once, so that memory for code and kernels is not taken for the network's
        network(*(torch.zeros(1, 3, size, size) for size in sizes_px))
    del network
    grown = GrownBy()
    network, _ = _network_of(spec, runtime)
    profiles = []
    for device in dict.fromkeys((CPU, device_of(runtime))):
        placed, memory = on_device(network, device), grown if device == CPU else AllocatedOn(device)
        for precision in precisions(spec, runtime):
            profiles.append(
                profile(placed, sizes_px, device, precision=precision, memory=memory, sought_gpu=sought_gpu)
            )
    return profiles


def _network_of(spec: RunSpec, runtime: Runtime) -> tuple[nn.Module, tuple[PreprocessSpec, ...]]:
    """In eval mode on the CPU, with all its backbones; and what each of these is fed."""
    paths = store_paths(runtime).run(measured_run(spec))
    if paths.root.name != spec.run_id and (trained := read_spec(paths)) is not None:
        return network_of_run(trained, paths, runtime)
    network, preprocess = network_from_file(spec, runtime, note=lambda taken: None)
    return network.eval(), preprocess


if __name__ == "__main__":
    main()
