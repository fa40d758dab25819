"""Other people's settings of matplotlib: a LaTeX that is not there, fonts, a window to show figures in."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest

from dualscore.cli import main
from dualscore.figures import page
from dualscore.study.findings import Result, write_results
from dualscore.study.variants import load_study

SETTINGS = {
    "usetex": {"text.usetex": True},
    "fonts": {"font.size": 40.0, "font.family": "no such font", "axes.titlesize": "xx-large"},
    "lines": {"lines.linewidth": 9.0, "figure.autolayout": True, "savefig.format": "svg"},
    "dots": {"figure.dpi": 30.0, "savefig.transparent": True, "savefig.pad_inches": 2.0},
}


def _drawn(out: Path) -> list[bytes]:
    with page.style():
        figure, (axis,) = page.panels(1, legend=True)
        axis.plot([0, 1], [1, 0], label="a % of $x_1$")
        axis.legend()
        page.Drawn(figure, {}).write(out, "one")
        page.table([["a", "b"], ["1", "2"]], "title_1", "note & more", {}).write(out, "two")
    return [(out / f"{name}.png").read_bytes() for name in ("one", "two")]


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_are_drawn_in_their_own_settings(name: str, tmp_path: Path) -> None:
    plain = _drawn(tmp_path / "plain")
    with mpl.rc_context(SETTINGS[name]):
        assert _drawn(tmp_path / "theirs") == plain
        assert mpl.rcParams["text.usetex"] is (name == "usetex")  # afterwards they are the user's again


@pytest.mark.parametrize("name", ["tkagg", "module://no_such_module"])
def test_no_window_is_wanted_for_a_figure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(mpl.rcParams, "backend", name)
    assert all(_drawn(tmp_path))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_studys_plot_too(name: str, tmp_path: Path) -> None:
    study = load_study("demo")
    steps, values = [1, 2, 3], [3.0, 2.5, 2.0]
    final = {"bound": 2.0, "dequantized": 2.0, "paper": 2.0}
    results = [
        Result(
            variant.name,
            0,
            0.1,
            steps,
            values,
            values,
            final,
            0.0,
            "",
            "",
        )
        for variant in study.variants
    ]
    for folder, settings in (("plain", {}), ("theirs", SETTINGS[name])):
        (tmp_path / folder).mkdir()
        with mpl.rc_context(settings):
            write_results(study, results, tmp_path / folder)
    plain, theirs = ((tmp_path / folder / "learning.png").read_bytes() for folder in ("plain", "theirs"))
    assert theirs == plain


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", [["status"], ["data", "verify", "nowhere"]])
@pytest.mark.parametrize("name", ["Qt4Agg", "module://gone", "1"])
def test_a_backend_that_is_gone_is_not_asked_for(
    command: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing matplotlib ends over it; the wheel's test meets one in processes of its own."""
    monkeypatch.setenv("MPLBACKEND", name)
    main(command)
    assert "MPLBACKEND" not in os.environ
