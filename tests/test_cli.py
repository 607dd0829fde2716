"""The command line: help that teaches, errors in one line, exit codes, a fast start."""

from __future__ import annotations

import errno
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgewise import __version__, extras
from edgewise.cli import main
from edgewise.errors import PeerError
from edgewise.extras import extra_of, install_command

COMMANDS = (
    "up",
    "evaluate",
    "scenarios",
    "scenario",
    "models",
    "balancer",
    "node",
    "relay",
    "client",
    "doctor",
    "traces",
    "compare-live",
    "profile",
    "calibrate",
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``edgewise ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["edgewise", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        main.main()
    return 0 if left.value.code is None else int(left.value.code)


def test_help_names_every_command_and_shows_how_to_begin() -> None:
    shown = CliRunner().invoke(main.app, ["--help"], env={"COLUMNS": "120"}).output
    for command in COMMANDS:
        assert f" {command} " in shown
    assert "edgewise up --policy earliest_completion,round_robin,local" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main.app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "Usage: edgewise" in result.output


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"edgewise {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["scenario", "check", "nosuch.yaml"], "nosuch.yaml"),
        (["up", "thre-sites"], "did you mean 'three-sites'?"),
        (["up", "smoke", "--policy", "locl"], "did you mean local?"),
        (["up", "smoke", "--rate", "-1"], "rate"),
        (["evaluate", "/nosuch"], "/nosuch"),
        (["client", "/nosuch.yaml"], "/nosuch.yaml"),
        (["relay", "/nosuch.yaml"], "/nosuch.yaml"),
        (["balancer", "/nosuch.yaml"], "/nosuch.yaml"),
        (["node", "/nosuch.yaml"], "/nosuch.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert problem in said.err
    assert said.err.count("\n") == 1


def failing(error: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return app


def test_the_end_of_a_log_follows_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "app", failing(PeerError("node a ended; its log:\n    [boom]")))
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err == "error: node a ended; its log:\n    [boom]\n"


def test_ctrl_c_leaves_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "app", failing(KeyboardInterrupt()))
    assert run(monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "app", failing(ZeroDivisionError()))
    monkeypatch.setattr(sys, "argv", ["edgewise"])
    with pytest.raises(ZeroDivisionError):
        main.main()


@pytest.mark.system
def test_help_imports_nothing_heavy() -> None:
    """What makes the difference between a quarter of a second and two."""
    heavy = ("numba", "onnxruntime", "aiohttp", "uvloop", "pyarrow", "PIL", "onnx")
    code = f"import sys, edgewise.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.system
def test_the_installed_command_works(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("edgewise")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"edgewise {__version__}\n")


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("pyarrow", "live"),
        ("prometheus_client.core", "live"),
        ("PIL.Image", "live"),
        ("onnx", "models"),
        ("cma", "bench"),
        ("simpy", "dev"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "app", failing(ModuleNotFoundError(name=module)))
    assert run(monkeypatch) == 2
    assert f"install the extra {extra!r}: {install_command(extra)}" in capsys.readouterr().err


def test_a_module_that_no_extra_brings_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extra_of("nosuch") is None
    monkeypatch.setattr(main, "app", failing(ModuleNotFoundError(name="edgewise.nosuch")))
    monkeypatch.setattr(sys, "argv", ["edgewise"])
    with pytest.raises(ModuleNotFoundError):
        main.main()


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("bench --suite quick --seeds 1", "scipy.special"),
        ("bench --suite quick --seeds 1 --html page.html", "plotly.io"),
        ("tune jsq --generations 1", "scipy.special"),
        ("simulate smoke --out run", "pyarrow"),
    ],
)
def test_a_missing_library_shows_before_the_work(
    command: str,
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for worker in ("api.suite.run", "api.simulate", "benchmark.tune.search"):
        monkeypatch.setattr(f"edgewise.{worker}", never)
    for loaded in [name for name in sys.modules if name.startswith(("edgewise.fidelity", module))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *command.split()) == 2
    assert "install the extra" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "bench --suite quick --seeds 1 --json file/below.json",
        "bench --suite quick --seeds 1 --html folder",
        "bench --suite quick --seeds 1 --out file",
        "tune jsq --generations 1 --out folder",
        "bound smoke --json folder",
        "simulate smoke --json file/below.json",
    ],
)
def test_a_path_that_cannot_be_written_shows_before_the_work(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for worker in (
        "api.suite.run",
        "api.simulate",
        "benchmark.tune.search",
        "bound.gap.measure_gap",
    ):
        monkeypatch.setattr(f"edgewise.{worker}", never)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *command.split()) == 2
    assert "cannot be written" in capsys.readouterr().err


def never(*_: object, **__: object) -> None:
    raise AssertionError("the work began")


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "module"),
    [("simulator", "simpy"), ("node_overhead", "aiohttp"), ("payload_forms", "PIL")],
)
def test_a_benchmark_names_the_extra_that_it_lacks(
    script: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"install the extra {extra_of(module)!r}" in said


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (
            {"url": "file:///home/me/edge%20wise", "dir_info": {"editable": True}},
            "pip install -e '/home/me/edge wise[live]'",
        ),
        ({"url": "file:///src", "dir_info": {}}, "pip install '/src[live]'"),
        (
            {"url": "file:///tmp/edgewise-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'edgewise[live] @ file:///tmp/edgewise-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/edgewise.git", "vcs_info": {"vcs": "git"}},
            "pip install 'edgewise[live] @ git+https://host/edgewise.git'",
        ),
        (None, "pip install 'a>=1' 'b-c'"),
    ],
)
def test_the_advice_fits_how_edgewise_was_installed(
    record: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return None if record is None else json.dumps(record)

    monkeypatch.setattr(extras.metadata, "distribution", lambda name: Installed())
    needs = ["n>=1", "b-c; extra == 'live'", 'a>=1; extra == "live"', "x; extra == 'models'"]
    monkeypatch.setattr(extras.metadata, "requires", lambda name: needs)
    assert install_command("live") == command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "/d/x: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/d/x"), "/d/x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "standard output: No space left"),
    ],
)
def test_a_full_or_read_only_disk_is_one_line(
    error: OSError,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(main, "app", failing(error))
    assert run(monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.system
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["scenarios"], ["--help"], ["scenario", "show", "smoke"]])
def test_a_full_standard_output_is_one_line(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgewise", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"
