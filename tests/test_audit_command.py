"""Tests of ``python -m symlearn.audit``: what it prints and writes, and one line for everything that can go wrong."""

import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch

import symlearn.audit

MODELS = """
import torch
from torch import nn

def convolutional():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)

    def forward(self, ids):
        return self.head(self.embed(ids).relu())

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x, y):
        return self.a(x) * self.b(y)

class Group:
    made = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def random():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x) + torch.rand(2)
    return Random()

def needs_an_argument(width):
    return nn.Linear(width, 2)

def raises():
    raise OSError("no checkpoint here")

def leaves():
    raise SystemExit(3)

def a_number():
    return 7

def without_parameters():
    return nn.ReLU()

def not_finite():
    model = nn.Linear(4, 2)
    nn.init.constant_(model.bias, float("nan"))
    return model

number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with a module of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "models_of_a_user", raising=False)
    (tmp_path / "models_of_a_user.py").write_text(MODELS)
    (tmp_path / "broken_module.py").write_text("raise ValueError('half written')\n")
    yield tmp_path
    sys.modules.pop("models_of_a_user", None)


def main(arguments):
    """What ``python -m symlearn.audit`` does, in this process; its exit code."""
    with mock.patch.object(sys, "argv", ["symlearn.audit", *arguments]), pytest.raises(SystemExit) as stop:
        runpy.run_path(symlearn.audit.__file__, run_name="__main__")
    return stop.value.code


def run(*arguments):
    return main([f"models_of_a_user:{arguments[0]}", *arguments[1:]])


class Outline(HTMLParser):
    """Tags with their attributes, and whether every one is closed."""

    void = frozenset({"meta", "br", "img", "path", "rect", "circle", "use", "line", "hr", "polygon", "polyline"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_table_is_printed_and_the_report_written(folder, capsys):
    assert run("convolutional", "--input-shape", "3,8,8") == 0
    printed = capsys.readouterr()
    assert "547 parameters, 4 flat directions" in printed.out
    assert "rescaling" in printed.out
    assert printed.err == ""
    assert (folder / "audit.html").exists()


def test_the_report_is_one_page_that_needs_no_network(folder):
    assert run("convolutional", "--input-shape", "3,8,8", "--html", "report.html") == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert page.open == []
    assert text.startswith("<!doctype html>")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)
    assert "<title>Audit of models_of_a_user:convolutional</title>" in text
    assert "prefers-color-scheme: dark" in text
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!['\"]?(data:|#))|@import|<script", text)


def test_the_json_has_what_the_report_has(folder, capsys):
    assert run("convolutional", "--input-shape", "3,8,8", "--no-html", "--json", "audit.json") == 0
    found = json.loads((folder / "audit.json").read_text())
    assert (found["n_parameters"], found["flat_dimension"]) == (547, 4)
    assert not (folder / "audit.html").exists()
    assert capsys.readouterr().out.endswith("wrote audit.json\n")


def test_tokens_are_drawn_for_a_model_with_an_embedding(folder, capsys):
    assert run("Language", "--input-shape", "7", "--tokens", "20", "--no-html") == 0
    assert "embed.weight" in capsys.readouterr().out


def test_a_model_of_two_arguments_gets_two_inputs(folder):
    assert run("Two", "--input-shape", "4", "--input-shape", "5", "--no-html") == 0


def test_a_module_may_be_named_instead_of_a_factory(folder, capsys):
    assert run("Group.made", "--input-shape", "4", "--no-html") == 0
    assert "44 parameters, 6 flat directions" in capsys.readouterr().out


def test_the_seed_makes_the_run_repeatable(folder):
    for name in ("first", "second"):
        assert run("convolutional", "--input-shape", "3,8,8", "--no-html", "--json", name, "--seed", "5") == 0
    first, second = (json.loads((folder / name).read_text()) for name in ("first", "second"))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_the_random_state_of_the_caller_stays(folder):
    before = torch.get_rng_state()
    assert run("convolutional", "--input-shape", "3,8,8", "--no-html") == 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_are_loaded(folder, capsys, wrapped):
    state = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).state_dict()
    state["2.weight"][:, 3] = 0
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, "weights.pt")
    assert run("Group.made", "--input-shape", "4", "--weights", "weights.pt", "--no-html", "--json", "audit.json") == 0
    assert json.loads((folder / "audit.json").read_text())["units"][0]["dead"] == [3]


@pytest.mark.parametrize("kind", ["tensor", "list", "dict"])
def test_inputs_are_loaded(folder, kind):
    x, y = torch.randn(6, 4), torch.randn(6, 5)
    torch.save({"tensor": x, "list": [x, y], "dict": {"x": x, "y": y}}[kind], "inputs.pt")
    assert run("Group.made" if kind == "tensor" else "Two", "--inputs", "inputs.pt", "--no-html") == 0


def test_a_model_that_cannot_be_analysed_is_no_usage_error(folder, capsys):
    assert run("random", "--input-shape", "4", "--no-html") == 0
    assert "untraceable" in capsys.readouterr().out


BAD = {
    "no target": ([], "the following arguments are required: target"),
    "no inputs": (["models_of_a_user:convolutional"], "one of the arguments --input-shape --inputs is required"),
    "both inputs": (
        ["m:f", "--input-shape", "4", "--inputs", "a.pt"],
        "--inputs: not allowed with argument --input-shape",
    ),
    "unknown option": (["m:f", "--input-shape", "4", "--size", "3"], "unrecognized arguments: --size 3"),
    "no colon": (
        ["models_of_a_user", "--input-shape", "4"],
        "target must be package.module:name, got 'models_of_a_user'",
    ),
    "no module": (
        ["no.such.module:f", "--input-shape", "4"],
        "got 'no.such.module': ModuleNotFoundError: No module named",
    ),
    "relative module": (
        [".models:f", "--input-shape", "4"],
        "target must name a module that can be imported, got '.models'",
    ),
    "broken module": (["broken_module:f", "--input-shape", "4"], "got 'broken_module': ValueError: half written"),
    "no such name": (["models_of_a_user:vgg", "--input-shape", "4"], "target must name something in .* got 'vgg'"),
    "a number": (
        ["models_of_a_user:number", "--input-shape", "4"],
        "must be a torch.nn.Module or make one, got 'number', a int",
    ),
    "makes a number": (
        ["models_of_a_user:a_number", "--input-shape", "4"],
        "must make a torch.nn.Module, got a int from a_number",
    ),
    "needs an argument": (
        ["models_of_a_user:needs_an_argument", "--input-shape", "4"],
        "must work without arguments, but .* TypeError",
    ),
    "factory raises": (
        ["models_of_a_user:raises", "--input-shape", "4"],
        r"raises\(\) raised OSError: no checkpoint here",
    ),
    "factory leaves": (["models_of_a_user:leaves", "--input-shape", "4"], r"leaves\(\) raised SystemExit: 3"),
    "no parameters": (
        ["models_of_a_user:without_parameters", "--input-shape", "4"],
        "model must be a module with parameters, got ReLU",
    ),
    "nan": (["models_of_a_user:not_finite", "--input-shape", "4"], "parameter 'bias' must be finite, got inf or nan"),
    "words as shape": (
        ["m:f", "--input-shape", "three,4"],
        "--input-shape: must be positive integers .* got 'three,4'",
    ),
    "zero in shape": (["m:f", "--input-shape", "3,0"], "--input-shape: must be positive integers with commas"),
    "wrong shape": (
        ["models_of_a_user:convolutional", "--input-shape", "3,9,8"],
        r"runs on inputs of shape \(4, 3, 9, 8\), got RuntimeError",
    ),
    "huge shape": (
        ["models_of_a_user:convolutional", "--input-shape", "99999999,99999999"],
        "--input-shape must fit into memory",
    ),
    "batch of zero": (["m:f", "--input-shape", "4", "--batch", "0"], "--batch: must be a positive integer, got '0'"),
    "negative seed": (["m:f", "--input-shape", "4", "--seed", "-1"], "--seed: must be an integer from 0, got '-1'"),
    "fractional tokens": (
        ["m:f", "--input-shape", "4", "--tokens", "1.5"],
        "--tokens: must be a positive integer, got '1.5'",
    ),
    "tokens beyond the embedding": (
        ["models_of_a_user:Language", "--input-shape", "4", "--tokens", "10000"],
        "got IndexError: index out of range",
    ),
    "numbers for an embedding": (
        ["models_of_a_user:Language", "--input-shape", "4"],
        "got RuntimeError: Expected tensor",
    ),
    "no file of inputs": (
        ["models_of_a_user:Two", "--inputs", "no.pt"],
        "--inputs must be a file that can be read, got 'no.pt': No such file",
    ),
    "text as inputs": (
        ["models_of_a_user:Two", "--inputs", "models_of_a_user.py"],
        "--inputs must be a file made by torch.save",
    ),
    "inputs of words": (
        ["models_of_a_user:Two", "--inputs", "words.pt"],
        "--inputs must hold a tensor, a list of tensors or a dict, got a list",
    ),
    "directory of weights": (
        ["models_of_a_user:Group.made", "--input-shape", "4", "--weights", "."],
        "--weights must be a file that can be read",
    ),
    "weights of another model": (
        ["models_of_a_user:Group.made", "--input-shape", "4", "--weights", "state.pt"],
        "--weights must fit the model: RuntimeError: .*size mismatch",
    ),
    "a tensor as weights": (
        ["models_of_a_user:Group.made", "--input-shape", "4", "--weights", "x.pt"],
        "--weights must hold a state dict, got a Tensor",
    ),
    "code as weights": (
        ["models_of_a_user:Group.made", "--input-shape", "4", "--weights", "code.pt"],
        "--weights must be a file made by torch.save",
    ),
    "report in no directory": (
        ["m:f", "--input-shape", "4", "--html", "no/audit.html"],
        "--html must be a file in a directory that exists, got 'no/audit.html'",
    ),
    "a name too long": (
        ["m:f", "--input-shape", "4", "--html", "a" * 5000],
        "--html must be a file that can be written, got File name too long",
    ),
    "json in a directory": (
        ["m:f", "--input-shape", "4", "--no-html", "--json", "."],
        "--json must be a file in a directory that exists, got '.'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, name):
    torch.save(["a", "b"], "words.pt")
    torch.save(torch.ones(3), "x.pt")
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).state_dict(), "state.pt"
    )
    torch.save(torch.nn.Linear(4, 2), "code.pt")
    arguments, message = BAD[name]
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("symlearn.audit: error: ")
    assert re.search(message, printed.err)
    assert not (folder / "audit.html").exists()


def command(folder, *arguments):
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "symlearn.audit", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_module_runs_as_a_command_with_models_from_the_working_directory(folder):
    done = command(folder, "models_of_a_user:Group.made", "--input-shape", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 flat directions" in done.stdout
    assert (folder / "audit.html").exists()


def test_a_usage_error_of_the_command_is_one_line_and_code_two(folder):
    done = command(folder, "models_of_a_user:vgg", "--input-shape", "4")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_help_names_every_option(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        "--input-shape",
        "--inputs",
        "--tokens",
        "--batch",
        "--seed",
        "--weights",
        "--html",
        "--no-html",
        "--json",
    ):
        assert option in text
