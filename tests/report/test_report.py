"""Pages as people open them: from a file, in Chromium, offline."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from segtrain.errors import UserError
from segtrain.report.write import write_report
from segtrain.runs.trials import Trial, write_trial
from segtrain.storage.files import Storage
from tests.support import made_runs

PLACE = """([x, y]) => {
    const div = document.getElementById("parallel"), frame = div.getBoundingClientRect();
    const { xaxis, yaxis } = div._fullLayout;
    return [frame.x + xaxis._offset + xaxis.l2p(x), frame.y + yaxis._offset + yaxis.l2p(y)];
}"""
SHOWN = '[...document.querySelectorAll("#leaderboard tbody tr:not(.filtered)")].map(row => Number(row.dataset.trial))'


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a box over the parallel coordinates, from and to places in their own units."""
    page.locator("#parallel").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(PLACE, start))
    page.mouse.down()
    page.mouse.move(*page.evaluate(PLACE, end), steps=5)
    page.mouse.up()


def drawn(page: Page) -> dict[str, int]:
    """How many paths each chart has drawn for its data."""
    count = 'div => div.querySelectorAll(".scatterlayer path, .barlayer path").length'
    return {div.get_attribute("id"): div.evaluate(count) for div in page.locator(".chart").element_handles()}


def wait_for(page: Page, trials: set[int]) -> None:
    """Until the leaderboard shows these and no others; plotly tells of a selection a little later."""
    for _ in range(100):
        if set(page.evaluate(SHOWN)) == trials:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"shown are {sorted(page.evaluate(SHOWN))}, not {sorted(trials)}")


def test_the_page_of_a_run_draws_every_chart_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "cars")
    path = Path(write_report(str(tmp_path / "cars"), Storage()))
    seen = made_runs.open_page(browser, path)
    assert (seen.requests, seen.problems) == ([path.as_uri()], [])
    charts = drawn(seen.page)
    assert charts.keys() == {"dice", "loss", "learning-rate", "time", "histogram", "foreground", "threshold", "goodput"}
    assert min(charts.values()) > 0
    assert seen.page.get_by_text("worker 1 lost").count() == 1
    assert seen.page.locator(".panel figcaption b").all_text_contents() == ["best", "median", "worst"]
    assert seen.page.locator(".panel img").evaluate_all("all => all.every(one => one.naturalWidth > 300)")
    seen.page.close()


def test_the_page_of_a_sweep_draws_every_chart_and_asks_for_nothing(sweep_page: made_runs.Seen) -> None:
    page = sweep_page.page
    assert (sweep_page.requests, sweep_page.problems) == ([page.url], [])
    charts = drawn(page)
    assert charts.keys() == {"parallel", "cost", "curves", "importance"}
    assert min(charts.values()) > 0
    assert len(page.evaluate(SHOWN)) == page.locator("#leaderboard img").count() == 19
    reasons = page.locator(".reason").all_inner_texts()
    assert sum("worker 0 was killed <SIGKILL>" in text for text in reasons) == 2
    assert sum("17.20 GiB" in text for text in reasons) == 2


def test_what_users_write_is_text_and_never_markup(sweep_page: made_runs.Seen) -> None:
    assert sweep_page.page.title() == "search - segtrain"
    assert sweep_page.page.locator(".reason").last.inner_text() == made_runs.MARKUP


def test_a_box_over_an_axis_keeps_the_trials_that_pass_there(sweep_page: made_runs.Seen) -> None:
    trials = [trial for trial in made_runs.make_trials(20) if trial.history]
    wide = {trial.number for trial in trials if trial.point["model.filters"] == 64}
    deep = {trial.number for trial in trials if trial.point["model.depth"] == 5}
    assert wide & deep not in (set(), wide, deep)
    page = sweep_page.page
    everything = set(page.evaluate(SHOWN))
    drag(page, (-0.1, 0.76), (0.1, 1.0))
    wait_for(page, wide)
    page.keyboard.down("Shift")
    drag(page, (0.9, 0.68), (1.1, 1.0))
    page.keyboard.up("Shift")
    wait_for(page, wide & deep)
    page.mouse.dblclick(*page.evaluate(PLACE, (2.5, 0.2)))
    wait_for(page, everything)


def test_a_click_on_a_head_sorts_the_leaderboard(sweep_page: made_runs.Seen) -> None:
    page = sweep_page.page

    def dice() -> list[float]:
        return [float(text) for text in page.locator("#leaderboard tbody td.strong").all_inner_texts()]

    head = page.locator("#leaderboard th", has_text="dice").first
    first = dice()
    assert first[0] == max(first), "by rank, which puts failed trials last whatever their dice"
    assert first != sorted(first, reverse=True)
    head.click()
    assert dice() == sorted(dice())
    head.click()
    assert dice() == sorted(dice(), reverse=True)


def test_masks_without_an_object_are_warned_of(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run")
    path = tmp_path / "run/best/metrics.json"
    best = json.loads(path.read_text())
    page = Path(write_report(str(tmp_path / "run"), Storage())).read_text()
    assert "masks have no object" not in page
    path.write_text(json.dumps(best | {"validation_foreground": [0.0] * len(best["validation_ids"])}))
    page = Path(write_report(str(tmp_path / "run"), Storage())).read_text()
    assert "warning: all 12 masks have no object; a dice of 1 says nothing" in page
    made_runs.write_made_sweep(tmp_path / "sweep", made_runs.make_trials(3))
    for metrics in (tmp_path / "sweep").rglob("best/metrics.json"):
        metrics.write_text(path.read_text())
    assert "all 12 masks have no object" in Path(write_report(str(tmp_path / "sweep"), Storage())).read_text()


def test_plotly_is_in_the_page_once_and_without_its_wrapper(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=0)
    page = Path(write_report(str(tmp_path / "run"), Storage())).read_text()
    assert page.count("var Plotly=(") == page.count("* Licensed under the MIT license\n*/") == 1
    assert "root.moduleName" not in page


def test_a_page_is_as_wide_as_a_phone(browser: Browser, tmp_path: Path) -> None:
    made_runs.write_made_sweep(tmp_path / "sweep", made_runs.make_trials(6), panels=1)
    seen = made_runs.open_page(
        browser, Path(write_report(str(tmp_path / "sweep"), Storage())), width=390, height=844, touch=True
    )
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
    assert seen.problems == []
    seen.page.close()


def test_a_run_and_a_sweep_that_have_only_begun_have_a_page(browser: Browser, tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=0)
    made_runs.write_made_sweep(tmp_path / "sweep", [], state="running")
    assert "No trial has been scored yet" in Path(write_report(str(tmp_path / "sweep"), Storage())).read_text()
    seen = made_runs.open_page(browser, Path(write_report(str(tmp_path / "run"), Storage())))
    assert "no epoch of 1 is recorded yet" in seen.page.inner_text("header")
    assert seen.problems == []
    seen.page.close()


def test_a_sweep_that_is_running_lists_what_it_has_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    trials = made_runs.make_trials(4)
    made_runs.write_made_sweep(folder, trials, state="running", panels=0)
    (folder / "best.yaml").unlink()
    write_trial(str(folder), Trial(4, trials[0].point, "running", attempts=1), Storage())
    (folder / "trials/0005").mkdir()
    page = Path(write_report(str(folder), Storage())).read_text()
    assert f"python jobs/tune.py {folder}/recipe.yaml --resume" in page
    assert "best.yaml" not in page
    assert "Too few trials have ended" in page


def test_the_page_goes_where_it_is_asked_to_and_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", epochs=1, panels=0)
    before = sorted(tmp_path.rglob("*"))
    url = write_report(f"{tmp_path}/run/", Storage(), str(tmp_path / "page.html"))
    assert url == str(tmp_path / "page.html")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "page.html"])


def test_a_folder_that_is_neither_is_refused_with_what_may_have_been_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds neither a run nor a sweep; give the folder <run"):
        write_report(str(tmp_path), Storage())
    made_runs.write_run(tmp_path / "a", epochs=1, panels=0)
    with pytest.raises(UserError, match=f"but runs: give one of them, such as {tmp_path}/a"):
        write_report(str(tmp_path), Storage())
    assert not (tmp_path / "report.html").exists()


def test_the_folder_of_all_folds_is_no_run(tmp_path: Path) -> None:
    recipe = (tmp_path / "recipe.yaml", tmp_path / "fold-0")
    made_runs.write_run(recipe[1], epochs=1, panels=0)
    recipe[0].write_text("folds: all\n")
    with pytest.raises(UserError, match=r"such as .*fold-0"):
        write_report(str(tmp_path), Storage())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", "modle: {}", "recipe.yaml is not a recipe that this segtrain reads"),
        ("recipe.yaml", "[1, 2]", "recipe.yaml is not a recipe"),
        ("best/metrics.json", "{", "metrics.json is not what a run writes"),
        ("sweep.json", "[]", "sweep.json is not what jobs/tune.py"),
    ],
)
def test_a_file_that_is_not_ours_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    made_runs.write_run(tmp_path / "run", epochs=1, panels=0)
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(str(tmp_path / "run"), Storage())


def test_no_credentials_of_a_url_come_into_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    secret = "https://someone:geheim@server/bucket"
    trials = made_runs.make_trials(4)
    made_runs.write_made_sweep(folder, [*trials, Trial(4, {}, "failed", f"cannot reach {secret}")], panels=0)
    text = (folder / "recipe.yaml").read_text().replace("endpoint_url: null", f"endpoint_url: {secret}")
    (folder / "recipe.yaml").write_text(text)
    page = Path(write_report(str(folder), Storage())).read_text()
    assert "geheim" not in page
    assert page.count("https://***@server/bucket") >= 2
