"""The page at /ui, in a real browser: what a person sees, does and is told."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.kit.browser import CHROMIUM, Page, browser
from tests.kit.service import Service

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
]

ANSWERED = "document.querySelectorAll('.turn.assistant .after').length"
WATCH = """
    window.seen = new Set();
    setInterval(() => {
        const words = document.querySelectorAll('.token').length;
        if (words > 5 && !document.querySelector('#stop').hidden) seen.add('words');
        if (document.querySelector('#works').classList.contains('flowing')) seen.add('flow');
    }, 20)
"""
"""By the page itself: what is to be seen for a second only, who asks from outside may come too late for."""

SLOW = {"MILLRACE_SIM_STEP_MS": "15", "MILLRACE_SIM_EOS": "0"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    it = await Service.start(env=SLOW, folder=tmp_path_factory.mktemp("page"), engines=2)
    yield it
    await it.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def page(service: Service) -> AsyncIterator[Page]:
    """The page, ready, on a screen of usual size. It must not have complained of anything in the end."""
    async with browser() as chromium:
        shown = await chromium.page()
        await shown.size(1280, 800)
        await shown.open(f"{service.url}/ui")
        await shown.until("document.querySelector('#state .dot').classList.contains('ready')")
        await shown.until("document.querySelectorAll('#model option').length")
        yield shown
        refusals = [each for each in shown.complaints if "400 (Bad Request)" not in each]

        assert refusals == []


async def most(page: Page, tokens: int, seed: int = 7) -> None:
    for name, value in (("most", tokens), ("seed", seed)):
        await page.js(f"document.getElementById('{name}').value = {value}")


async def ask(page: Page, text: str) -> None:
    await page.js("document.getElementById('ask').focus()")
    await page.type(text)
    await page.press("Enter")


async def answer(page: Page) -> str:
    text = await page.js(
        "[...document.querySelectorAll('.turn.assistant')].at(-1).querySelector('.words').textContent"
    )
    return str(text)


async def undisturbed(service: Service, text: str, tokens: int) -> str:
    """What the same request gets from the API."""
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "seed": 7,
        "temperature": 0.7,
    }
    async with httpx.AsyncClient(timeout=60) as client:
        reply = await client.post(f"{service.url}/v1/chat/completions", json=body)
    return str(reply.json()["choices"][0]["message"]["content"])


async def test_a_question_is_answered_while_one_watches(page: Page, service: Service) -> None:
    """The words come one by one, the works light up, and the odds of a token are there to see."""
    await most(page, 150)
    await page.js(WATCH)
    await page.click("#ask")
    await page.type("hello there")
    await page.click("#send")
    await page.until("seen.has('words') && seen.has('flow')")
    await page.until(ANSWERED)
    lit = "document.querySelectorAll('.station .ms:not(:empty)').length"
    await page.until(f"{lit} >= 4")
    await page.hover(".token:nth-child(3)")
    await page.until(
        "!document.getElementById('tip').hidden && document.querySelectorAll('#tip tr').length >= 5"
    )

    assert await answer(page) == await undisturbed(service, "hello there", 150)
    assert "150 tokens" in await page.js("document.querySelector('.after').textContent")


async def test_an_engine_is_killed_and_the_stream_goes_on(page: Page, service: Service) -> None:
    """Pressed amid an answer: what is lost and where it goes on is told; no word differs."""
    await most(page, 250)
    await ask(page, "tell me a long story")
    await page.until("document.querySelectorAll('.token').length > 20")
    await page.click("#kill")
    await page.until("document.querySelector('#events .lost')")
    await page.until("document.querySelector('#events .resumed')")
    await page.until(ANSWERED)

    assert await answer(page) == await undisturbed(service, "tell me a long story", 250)
    assert await page.js("document.querySelectorAll('.error').length") == 0
    assert (
        await page.js("[...document.querySelectorAll('#rides .moved')].map((e) => e.textContent)[0]")
        == "2 engines"
    )


async def test_a_trace_is_opened_and_closed_with_keys_alone(page: Page) -> None:
    """Asked with Enter, reached with Tab, closed with Escape; each hop has its bar."""
    await most(page, 20)
    await ask(page, "hello")
    await page.until(ANSWERED)
    await page.js("document.querySelector('#talk').focus()")
    for _ in range(6):
        await page.press("Tab")
        if await page.js("document.activeElement.textContent") == "open trace":
            break
    await page.press("Enter")
    await page.until("document.getElementById('trace').open")
    await page.until("document.getElementById('bars').textContent.includes('detokenize')")
    hops = await page.js(
        "[...document.querySelectorAll('#bars td:first-child')].map((cell) => cell.textContent)"
    )
    await page.press("Escape")

    assert {"tokenize", "publish", "claim", "prefill", "decode", "detokenize"} <= set(hops)
    assert await page.js("document.getElementById('trace').open") is False


async def test_an_error_is_said_plainly(page: Page) -> None:
    """What was wrong, in words, where the answer would be; the next question is answered."""
    await most(page, 10_000_000)
    await ask(page, "hello")
    await page.until("document.querySelector('.error')")
    said = await page.js("document.querySelector('.error').textContent")
    await most(page, 5)
    await ask(page, "hello again")
    await page.until(f"{ANSWERED} == 2")

    assert "too long for this model" in said
    assert "10000000" in said


async def test_an_answer_can_be_stopped(page: Page, service: Service) -> None:
    """And its slot is free again."""
    await most(page, 3000)
    await ask(page, "never end")
    await page.until("document.querySelectorAll('.token').length > 3")
    await page.click("#stop")
    await page.until(ANSWERED)
    await page.until("document.querySelector('[data-role=queue] .process').textContent.includes('0 running')")

    assert "stopped by you" in await page.js("document.querySelector('.after').textContent")


@pytest.mark.parametrize("width", [320, 390])
async def test_it_fits_a_narrow_screen(page: Page, width: int) -> None:
    """Nothing has to be scrolled sideways, and the question can be typed."""
    await page.size(width, 700, dark=True)
    await most(page, 5)
    await ask(page, "hello")
    await page.until(ANSWERED)

    assert await page.js("document.documentElement.scrollWidth") <= width
    assert await page.js("document.querySelector('#ask').getBoundingClientRect().bottom") <= 700


async def test_the_button_is_for_this_page_alone(service: Service) -> None:
    """Neither a page from elsewhere nor a name that was made to lead here ends an engine."""
    async with httpx.AsyncClient() as client:
        plain = await client.post(f"{service.url}/ui/kill")
        foreign = {"x-millrace-page": "1", "origin": "http://evil.example"}
        elsewhere = await client.post(f"{service.url}/ui/kill", headers=foreign)
        renamed = {"x-millrace-page": "1", "host": "evil.example"}
        rebound = await client.post(f"{service.url}/ui/kill", headers=renamed)

    assert [reply.status_code for reply in (plain, elsewhere, rebound)] == [400, 400, 400]


async def test_a_person_is_sent_to_the_page_and_a_client_is_not(service: Service) -> None:
    """Ollama's clients look for their own words at the root."""
    async with httpx.AsyncClient() as client:
        person = await client.get(service.url, headers={"accept": "text/html,*/*"})
        program = await client.get(service.url)
        page = await client.get(f"{service.url}/ui")
        again = await client.get(f"{service.url}/ui", headers={"if-none-match": page.headers["etag"]})

    assert (person.status_code, person.headers["location"]) == (307, "/ui")
    assert program.text == "Ollama is running"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert again.status_code == 304
