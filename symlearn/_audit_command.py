"""The command line of the audit: ``python -m symlearn.audit package.module:factory --input-shape 3,32,32``."""

from __future__ import annotations

import argparse
import html
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from symlearn._audit_report import AuditReport, as_html

Inputs = tuple[tuple[Tensor, ...], dict[str, Any]]
Audit = Callable[..., AuditReport]

DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e6e6; --paper: #161616; }} }}
body {{ color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
main {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{inputs}</p>
<main>
{report}
</main>
</body>
</html>
"""


class UsageError(Exception):
    """What the user can put right, in one line."""


def main(audit: Audit, arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, or 2 where the arguments or what they name are at fault."""
    options = _parser().parse_args(arguments)
    try:
        _check_destinations(options)
        with torch.random.fork_rng(devices=[]):  # one seed each, so that the inputs do not depend on the model
            torch.manual_seed(options.seed)
            found = _found(options.target)
            torch.manual_seed(options.seed)
            model = _with_weights(_model(found, options.target), options.weights)
            torch.manual_seed(options.seed)
            args, keywords = _inputs(options)
        report = _report(audit, model, args, keywords, options)
        _write(report, (args, keywords), options)
    except UsageError as error:
        print(f"symlearn.audit: error: {error}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"symlearn.audit: error: {message} (--help explains)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m symlearn.audit",
        description="Find and verify the symmetries of a PyTorch model, and its dead and duplicate units.",
        epilog="examples:\n"
        "  python -m symlearn.audit my.models:resnet --input-shape 3,32,32 --weights resnet.pt\n"
        "  python -m symlearn.audit my.models:gpt --input-shape 64 --tokens 50257\n"
        "  python -m symlearn.audit torch.nn:Transformer --inputs batch.pt --json audit.json --no-html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", help="package.module:name of a module, or of a function without arguments making one")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input-shape",
        action="append",
        type=_shape,
        metavar="N,N,...",
        help="shape of one sample, for inputs from the standard normal distribution; once for every argument",
    )
    source.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE",
        help="inputs saved by torch.save: a tensor, a list of tensors, or a dict of keyword arguments",
    )
    parser.add_argument("--tokens", type=_positive, metavar="N", help="draw integers from 0 to N - 1 instead")
    parser.add_argument("--batch", type=_positive, default=4, metavar="N", help="number of samples (default 4)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of model, inputs and audit (default 0)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="state dict to load, or a dict with a 'state_dict'"
    )
    parser.add_argument(
        "--html", type=Path, default=Path("audit.html"), metavar="FILE", help="where the report goes (audit.html)"
    )
    parser.add_argument("--no-html", action="store_true", help="write no HTML report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(_positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be positive integers with commas, such as 3,32,32, got {text!r}"
        ) from None


def _positive(text: str) -> int:
    if not (text.strip().isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not (text.strip().isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"must be an integer from 0, got {text!r}")
    return int(text)


def _check_destinations(options: argparse.Namespace) -> None:
    """Refuse before the work is done, not after it."""
    for option, path in (("--html", None if options.no_html else options.html), ("--json", options.json)):
        if path is None:
            continue
        try:
            good = path.absolute().parent.is_dir() and not path.is_dir()
        except OSError as error:
            raise UsageError(f"{option} must be a file that can be written, got {error.strerror}") from error
        if not good:
            raise UsageError(f"{option} must be a file in a directory that exists, got {str(path)!r}")


def _found(target: str) -> Any:
    """What ``package.module:name`` names."""
    path, colon, name = target.partition(":")
    if not (path and colon and name):
        raise UsageError(f"target must be package.module:name, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        raise UsageError(f"target must name a module that can be imported, got {path!r}: {_one_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"target must name something in {path!r}, got {name!r}, which is not there")
        found = getattr(found, part)
    return found


def _model(found: Any, target: str) -> nn.Module:
    """The module that was named, or that the function makes."""
    name = target.partition(":")[2]
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(f"target must be a torch.nn.Module or make one, got {name!r}, a {type(found).__name__}")
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise UsageError(f"target must work without arguments, but {name}() raised {_one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"target must make a torch.nn.Module, got a {type(made).__name__} from {name}()")
    return made


def _with_weights(model: nn.Module, path: Path | None) -> nn.Module:
    if path is None:
        return model
    state = _loaded("--weights", path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise UsageError(f"--weights must hold a state dict, got a {type(state).__name__}")
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise UsageError(f"--weights must fit the model: {_one_line(error)}") from error
    return model


def _inputs(options: argparse.Namespace) -> Inputs:
    if options.inputs is not None:
        return _saved_inputs(_loaded("--inputs", options.inputs))
    shapes = [(options.batch, *shape) for shape in options.input_shape]
    try:
        if options.tokens is not None:
            return tuple(torch.randint(options.tokens, shape) for shape in shapes), {}
        return tuple(torch.randn(shape) for shape in shapes), {}
    except RuntimeError as error:
        raise UsageError(f"--input-shape must fit into memory: {_one_line(error)}") from error


def _saved_inputs(saved: Any) -> Inputs:
    if isinstance(saved, Mapping) and saved and all(isinstance(name, str) for name in saved):
        return (), dict(saved)
    args = (saved,) if isinstance(saved, Tensor) else saved
    if not isinstance(args, tuple | list) or not args or not all(isinstance(each, Tensor) for each in args):
        raise UsageError(f"--inputs must hold a tensor, a list of tensors or a dict, got a {type(saved).__name__}")
    return tuple(args), {}


def _loaded(option: str, path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{option} must be a file that can be read, got {str(path)!r}: {error.strerror}") from error
    except Exception as error:
        condition = "must be a file made by torch.save, of tensors and plain containers"
        raise UsageError(f"{option} {condition}, got {str(path)!r}: {_one_line(error)}") from error


def _report(
    audit: Audit, model: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any], options: argparse.Namespace
) -> AuditReport:
    try:
        return audit(model, args, kwargs=keywords, seed=options.seed)
    except Exception as error:
        shapes = _shapes((args, keywords))
        raise UsageError(f"the audit must have a model that runs on {shapes}, got {_one_line(error)}") from error


def _write(report: AuditReport, inputs: Inputs, options: argparse.Namespace) -> None:
    print(report)
    if not options.no_html:
        page = DOCUMENT.format(
            title=html.escape(f"Audit of {options.target}"),
            inputs=html.escape(f"On {_shapes(inputs)}."),
            report=as_html(report, heading="h2"),
        )
        _written("--html", options.html, page)
    if options.json is not None:
        _written("--json", options.json, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")


def _written(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} must be a file that can be written, got {str(path)!r}: {error.strerror}") from error
    print(f"wrote {path}")


def _shapes(inputs: Inputs) -> str:
    args, keywords = inputs
    tensors = [tuple(each.shape) for each in args]
    tensors += [tuple(each.shape) for each in keywords.values() if isinstance(each, Tensor)]
    return f"inputs of shape {', '.join(map(str, tensors))}"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
