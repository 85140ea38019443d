"""The `transfergrid` command: one verb for each script of jobs/, and the same functions behind both."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

from transfergrid.names import closest
from transfergrid.paths import VERBS

_PURPOSE = {
    "launch": "plan a grid, run it or send it to SLURM, and show its table",
    "run": "run one configuration by hand, with what it needs, or a sweep (-m)",
    "status": "show where a grid's runs are; logs, cancel, retry",
    "report": "build the comparison tables, figures and the page",
    "sync": "send a grid's runs to Weights & Biases",
    "predict": "apply a finished run to a folder of images, or export it",
    "doctor": "check whether this machine or cluster is fit",
    "list": "show the models, data sets, grids and clusters that can be named",
    "store": "show what takes the space and what is damaged; repair, collect",
}
WORDS = ("--help", "-h", "help")
HELP = "\n".join(
    (
        "usage: transfergrid VERB key=value ...",
        "",
        "Which pretrained image model, alone or with another, transfers best to my data, and at what cost.",
        "",
        *(f"  {verb:<9}{purpose}" for verb, purpose in _PURPOSE.items()),
        "",
        "transfergrid launch           runs the quickstart: minutes on a laptop, no GPU, no network",
        "transfergrid VERB --help      shows examples and keys",
        "transfergrid --version        shows the version",
    )
)


def main() -> int:
    """Exit codes: 0 completed, 1 something failed, 2 the request makes no sense, 130 interrupted."""
    verb, *arguments = sys.argv[1:] or ("--help",)
    if verb in WORDS and arguments and arguments[0] in VERBS:  # transfergrid help launch
        verb, *arguments = arguments[0], "--help", *arguments[1:]
    if verb in WORDS:
        print(HELP)
        return 0
    if verb == "--version":
        print(f"transfergrid {version('transfergrid')}")
        return 0
    if verb not in VERBS:
        close = closest(verb.removeprefix("--"), VERBS)
        hint = f"did you mean 'transfergrid {close}'?" if close else f"known: {', '.join(VERBS)}"
        if "=" in verb:
            hint = f"the verb comes first: transfergrid launch {verb}"
        print(f"error: unknown verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"transfergrid {verb}", *arguments]
    try:
        module = importlib.import_module(f"transfergrid.cli.{VERBS[verb]}")
    except KeyboardInterrupt:
        return 130
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
