"""The pages in a real browser: looks, controls, live updates, accessibility."""

import base64
import subprocess
import sys

import dashboard_logs as logs
import pytest
from browsing import Visit, check_looks, chromium, faults, marks, serving, sync_api

pytestmark = marks
PAGES = ["", "run?id=first", "run?id=deep/second", "federation?id=deep/second", "images?id=first"]
PAGES += ["images?id=first&client=1&class=1", "time?id=first&round=2", "config?id=first"]
PAGES += ["log?id=deep/second", "compare?id=first&id=deep/second", "federation?id=many&client=7"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def folder(tmp_path):
    logs.write(tmp_path / "first")
    logs.write(tmp_path / "deep" / "second", logs.whole(late=[1], ended=False))
    asked = [
        logs.line("client-asked", 2, 1, partition_id=c, phase="clients", num_bytes=1)
        for c in range(60)
    ]
    logs.write(tmp_path / "many", [logs.start(), *asked])
    return tmp_path


@pytest.fixture
def address(folder):
    with serving(folder) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    visit = Visit(browser)
    visit.page.goto(f"{address}?token=t")
    yield visit
    visit.close(address)


def test_every_page_fits_and_is_accessible(browser, address):
    check_looks(browser, address, PAGES)


def test_numbers_change_and_nothing_else_does(visit, address, folder):
    page = visit.page
    page.goto(f"{address}run?id=deep/second")
    tile = page.locator(".tile dd").first
    assert tile.inner_text() == "3 of 3"
    page.locator("#accuracy-table summary").click()
    page.evaluate("window.scrollTo(0, 300); window.mark = document.querySelector('#accuracy h2')")
    page.locator("input[name=round]").focus()
    with (folder / "deep/second/events.jsonl").open("a") as file:
        file.writelines(f"{x}\n" for x in logs.round_of(4, 0.9, began=100))
    sync_api.expect(tile).to_have_text("4 of 4", timeout=5000)
    sync_api.expect(page.locator("#which")).to_have_text("4")
    sync_api.expect(page.locator("#accuracy tbody tr").last).to_contain_text("90.0 %")
    assert page.locator("#accuracy details").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.name") == "round"
    assert page.evaluate("window.scrollY") == 300
    # Drawn in place: the page was not loaded anew.
    assert page.evaluate("window.mark !== undefined")


def test_eight_tabs_live_at_once(visit, address, folder):
    tabs = [visit.context.new_page() for _ in range(8)]
    for tab in tabs:
        tab.goto(f"{address}run?id=deep/second")
    with (folder / "deep/second/events.jsonl").open("a") as file:
        file.writelines(f"{x}\n" for x in logs.round_of(4, 0.9, began=100))
    for tab in tabs:
        sync_api.expect(tab.locator(".tile dd").first).to_have_text("4 of 4", timeout=10_000)


def test_the_slider_comes_with_the_first_images(visit, address, folder):
    page = visit.page
    page.goto(f"{address}images?id=many")
    sync_api.expect(page.locator("#images")).to_contain_text("no images so far")
    assert page.locator("input[name=round]").is_hidden()
    with (folder / "many/events.jsonl").open("a") as file:
        file.writelines(f"{x}\n" for x in logs.round_of(1, 0.9, began=100))
    sync_api.expect(page.locator("#images h2")).to_have_text("Distilled images, round 1")
    assert page.locator("input[name=round]").is_visible()
    assert page.locator("input[name=round]").get_attribute("max") == "1"


def test_one_slider_moves_through_the_rounds(visit, address):
    page = visit.page
    page.goto(f"{address}images?id=first")
    title = page.locator("#images h2")
    assert title.inner_text() == "Distilled images, round 3"
    page.locator("input[name=round]").press("ArrowLeft")
    sync_api.expect(title).to_have_text("Distilled images, round 2")
    assert page.url.endswith("&round=2")
    page.get_by_label("what changed").check()
    sync_api.expect(title).to_have_text("What changed in round 2")
    assert page.locator("#images use.before").count() == 2
    page.get_by_label("what changed").uncheck()
    page.locator("#images tbody a").first.click()
    sync_api.expect(page.locator("#detail h2")).to_have_text("Client 0, class cat")
    page.get_by_role("button", name="Play").click()
    sync_api.expect(title).to_have_text("Distilled images, round 3")
    sync_api.expect(title).to_have_text("Distilled images, round 1")
    page.get_by_role("button", name="Play").click()


def test_the_images_are_the_sprites(visit, address):
    page = visit.page
    page.goto(f"{address}images?id=first&round=2")
    page.wait_for_load_state("networkidle")
    drawn = page.locator("#images td svg").first.screenshot()
    # Grey 120 of the second round's sprite, in the middle of the cell.
    script = """async data => {
        const image = await createImageBitmap(await (await fetch(data)).blob());
        const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
        canvas.drawImage(image, 0, 0);
        return [...canvas.getImageData(image.width / 2, image.height / 2, 1, 1).data];
    }"""
    blank = visit.context.new_page()
    assert blank.evaluate(script, f"data:image/png;base64,{base64.b64encode(drawn).decode()}") == [
        120,
        120,
        120,
        255,
    ]


def test_runs_are_found_and_compared(visit, address):
    page = visit.page
    page.goto(address)
    page.get_by_label("Find").press_sequentially("first")
    sync_api.expect(page.locator("#runs h2")).to_have_text("1 of 3 runs")
    page.get_by_label("Find").fill("")
    sync_api.expect(page.locator("#runs h2")).to_have_text("3 runs")
    page.get_by_label("compare first").check()
    page.get_by_label("compare deep/second").check()
    page.get_by_role("button", name="Compare the ticked").click()
    sync_api.expect(page.locator("h1")).to_have_text("Compare")
    assert page.locator("#table thead").first.inner_text().split() == ["first", "deep/second"]


def test_a_box_in_focus_does_not_hold_the_list_back(visit, address, folder):
    page = visit.page
    page.goto(address)
    box = page.get_by_label("compare first")
    box.check()
    logs.write(folder / "late")
    sync_api.expect(page.locator("#runs h2")).to_have_text("4 runs", timeout=10_000)
    sync_api.expect(box).to_be_checked()
    sync_api.expect(box).to_be_focused()


def test_a_client_of_many_is_chosen_without_leaving(visit, address):
    page = visit.page
    page.goto(f"{address}federation?id=many")
    page.get_by_label("client 12: trains").click()
    sync_api.expect(page.locator(".clients tbody th")).to_have_text("12")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".clients tbody th")).to_have_text("13")


def test_a_silent_server_is_said(visit, address):
    page = visit.page
    page.goto(f"{address}run?id=first")
    page.route("**/run?*", lambda route: route.fulfill(status=500))
    sync_api.expect(page.locator("#lost")).to_be_visible(timeout=5000)
    page.unroute("**/run?*")
    sync_api.expect(page.locator("#lost")).to_be_hidden(timeout=5000)
    visit.wrong.clear()


def test_the_report_opens_from_the_disk(browser, folder, tmp_path):
    out = tmp_path / "report.html"
    command = [sys.executable, "-m", "flwr_dashboard", str(folder), "--report", str(out)]
    subprocess.run([*command, "--run", "first"], check=True, stdout=subprocess.DEVNULL)
    visit = Visit(browser, 390)
    visit.page.goto(out.as_uri())
    assert visit.page.locator(".frame:visible h3").inner_text() == "round 3"
    visit.page.locator("#frame").press("ArrowLeft")
    assert visit.page.locator(".frame:visible h3").inner_text() == "round 2"
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert faults(visit.page) == []
    visit.close("file:")
