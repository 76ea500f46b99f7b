"""Requests to the served page that do not come from the page itself."""

import io
import json
import os
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page is an option: requirements-demo.txt")

import httpx
from found_objects import found_in

from snnet_vitdet.demo.answers import Answers, Wish
from snnet_vitdet.demo.choices import Choices
from snnet_vitdet.demo.page import build_page
from snnet_vitdet.demo.server import private_uploads, served
from snnet_vitdet.stitching import Cost, StitchSpace

SPACE = StitchSpace((4, 8))
COSTS = [Cost(flops=(100 + 10 * i) * 1e9, params=5e6) for i in range(len(SPACE))]
META = {"_type": "gradio.FileData"}
STATE = ["gflops", 155, SPACE[0].name, "box", "fixed", 0.5]
MAX_UPLOAD_MB = 0.3
# Seconds; a busy machine may need that long.
PATIENCE = 60


class Recorder:
    """A model that finds nothing, and remembers how often it was asked at once."""

    def __init__(self):
        self.seen, self.running, self.most = 0, 0, 0

    def __call__(self, image, stitch_id):
        self.seen, self.running = self.seen + 1, self.running + 1
        self.most = max(self.most, self.running)
        time.sleep(0.02)
        self.running -= 1
        return found_in(image)


def picture(path=None, side=40):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    if path is not None:
        path.write_bytes(content.getvalue())
    return content.getvalue()


@pytest.fixture(scope="module")
def detector():
    return Recorder()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """An image of the machine that nobody has uploaded."""
    path = tmp_path_factory.mktemp("private") / "secret.png"
    picture(path, 50)
    return path


@pytest.fixture(scope="module")
def page(detector, tmp_path_factory):
    """Address and folder of uploads of a served page, called example.org by its proxy."""
    examples = tmp_path_factory.mktemp("examples")
    for name in ("a.png", "b.png"):
        picture(examples / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answers = Answers(detector, Choices(list(SPACE), COSTS, None), max_pixels=1_000_000)
    with private_uploads() as folder:
        built = build_page(answers, "A test", sorted(map(str, examples.iterdir())))
        with served(built, "127.0.0.1", port, MAX_UPLOAD_MB, ["Example.org"]) as address:
            yield address, folder


@pytest.fixture(scope="module")
def ask(page):
    """Sends a request through the queue as the page's script does; gives how it ended."""
    address, _ = page
    dependencies = httpx.get(f"{address}config").json()["dependencies"]
    # The first of an event is the one to ask: of "input", the plot.
    ids = {each["targets"][0][1]: each["id"] for each in reversed(dependencies)}
    sessions = iter(range(1000))

    def run(event, data):
        session = f"session{next(sessions)}"
        request = {"data": data, "fn_index": ids[event], "session_hash": session}
        join = f"{address}gradio_api/queue/join"
        # httpx itself refuses NaN, which servers take.
        headers = {"content-type": "application/json"}
        httpx.post(
            join, content=json.dumps(request), headers=headers, timeout=PATIENCE
        ).raise_for_status()
        url = f"{address}gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", url, timeout=PATIENCE) as lines:
            for line in lines.iter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data:"))
        raise AssertionError("the request never ended")

    return run


def upload(address, *files, **headers):
    parts = [("files", file) for file in files]
    url = f"{address}gradio_api/upload"
    return httpx.post(url, files=parts, headers=headers, timeout=PATIENCE)


def test_an_upload_is_detected_in_and_what_was_found_is_served(page, ask):
    address, folder = page
    (path,) = upload(address, ("a.png", picture())).json()
    assert path.startswith(folder)
    ended = ask("change", [{"path": path, "meta": META}, *STATE])
    found, said = ended["output"]["data"]
    assert ended["success"] and "0 objects" in said
    for served_path, size in ((path, (40, 40)), (found["path"], (448, 448))):
        answer = httpx.get(f"{address}gradio_api/file={served_path}")
        assert answer.status_code == 200
        assert Image.open(io.BytesIO(answer.content)).size == size


def test_an_example_is_taken_by_its_index_alone(page, ask):
    ended = ask("click", [1])
    (image,) = ended["output"]["data"]
    path = image["path"]
    assert os.path.basename(path) == "b.png"
    assert ask("change", [{"path": path, "meta": META}, *STATE])["success"]
    for no_index in (2, -1, "0", [0], {"path": path}, {"path": "/etc/passwd", "meta": META}):
        ended = ask("click", [no_index])
        assert not ended["success"] and "data" not in ended["output"]


def outside(kind, secret, folder):
    """The path of something that nobody has uploaded."""
    if kind == "file":
        return secret
    if kind == "pipe among uploads":
        os.mkfifo(f"{folder}/pipe.png")
        return f"{folder}/pipe.png"
    if kind == "link among uploads":
        os.symlink(secret, f"{folder}/link.png")
        return f"{folder}/link.png"
    if kind == "way up":
        return f"{folder}/../{os.path.relpath(secret, os.path.dirname(folder))}"
    return {"device": "/dev/zero", "address": "http://127.0.0.1:1/a.png"}[kind]


KINDS = ("file", "pipe among uploads", "link among uploads", "way up", "device", "address")


@pytest.mark.parametrize("kind", KINDS)
def test_only_uploads_are_read_and_served(kind, page, ask, detector, secret):
    address, folder = page
    path, seen = str(outside(kind, secret, folder)), detector.seen
    try:
        for image in (
            {"path": path},
            {"path": path, "meta": META},
            {"path": path, "meta": {}},
            {"path": path, "url": path, "meta": META},
            {"path": None, "url": path},
            {"url": path},
            {"a": {"path": path, "meta": META}},
            [{"path": path, "meta": META}],
        ):
            ended = ask("change", [image, *STATE])
            assert not ended["success"] and "data" not in ended["output"]
            assert ended["output"]["error"] == "Only files that were uploaded are taken."
        # Nor does any other control read or fetch it.
        state = [{"path": path, "meta": META}, *STATE[1:]]
        assert "were uploaded" in ask("change", [None, *state])["output"]["error"]
        answer = httpx.get(f"{address}gradio_api/file={path}", timeout=PATIENCE)
        assert answer.status_code == 403 and path not in answer.text
    finally:
        for name in ("pipe.png", "link.png"):
            if os.path.lexists(f"{folder}/{name}"):
                os.remove(f"{folder}/{name}")
    assert detector.seen == seen
    # Nobody else is kept waiting.
    assert ask("input", STATE)["success"]


def test_a_path_that_is_none_is_refused(ask):
    for path in ("", "\0", "a" * 10_000, "~", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        ended = ask("change", [{"path": path}, *STATE])
        assert not ended["success"] and "were uploaded" in ended["output"]["error"]


@pytest.mark.parametrize("wrong", [None, "abc", [1], float("nan")])
@pytest.mark.parametrize("place", range(len(STATE)))
def test_a_control_of_a_wrong_value_is_answered_in_a_sentence(place, wrong, page, ask):
    state = [wrong if i == place else value for i, value in enumerate(STATE)]
    (path,) = upload(page[0], ("a.png", picture())).json()
    for ended in (ask("input", state), ask("change", [{"path": path, "meta": META}, *state])):
        assert ended["success"] or ended["output"]["error"]


def test_pictures_are_decoded_one_at_a_time(page, detector, monkeypatch):
    """A decoded picture takes many times the memory of its file."""
    decoding, most, open_picture = [], [], Image.open

    def opened(*args, **kwargs):
        decoding.append(1)
        most.append(len(decoding))
        time.sleep(0.02)
        try:
            return open_picture(*args, **kwargs)
        finally:
            decoding.pop()

    monkeypatch.setattr(Image, "open", opened)
    address, _ = page
    (path,) = upload(address, ("a.png", picture())).json()
    answers = Answers(detector, Choices(list(SPACE), COSTS, None), max_pixels=1_000_000)
    detector.most = 0
    threads = [threading.Thread(target=answers.detect, args=[path, Wish(*STATE)]) for _ in "12345"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 5 and max(most) == 1 and detector.most == 1


# What a browser needs, found by watching one; everything else that gradio serves is closed.
SERVED = {
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"),
    *("/static/{path:path}", "/assets/{path:path}"),
    *("/gradio_api/app_id", "/gradio_api/startup-events"),
    *("/gradio_api/queue/data", "/gradio_api/upload_progress"),
    *("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/file={path_or_url:path}"),
}


def routes_of(routes, prefix=""):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes, prefix)
        elif getattr(route, "methods", None):
            yield from ((method, route.path) for method in route.methods)


def test_what_the_page_does_not_need_is_closed(page):
    import gradio as gr

    address, _ = page
    with gr.Blocks() as other:
        gr.Image()
    found = set(routes_of(gr.routes.App.create_app(other).routes))
    assert len(found) > 60
    closed = {(method, path) for method, path in found if path not in SERVED}
    assert len(closed) > 40
    for method, path in sorted(closed):
        url = address.rstrip("/") + path.replace("{url_path:path}", "http://127.0.0.1:1/")
        for part, value in (("{size}", "1"), ("{component_id}", "1"), (":path", "")):
            url = url.replace(part, value)
        answer = httpx.request(method, url.replace("{", "").replace("}", ""), timeout=PATIENCE)
        assert answer.status_code == 404, (method, path)
        if method != "HEAD":
            assert answer.text in ("There is no such page.", "There is nothing to post to here.")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("[::1]:{port}", 200),
        # Another site cannot have its pages come from an address in numbers.
        ("192.168.1.7:{port}", 200),
        ("example.org", 200),
        ("attacker.example:{port}", 403),
        ("localhost.attacker.example", 403),
        ("sub.example.org", 403),
        ("127.0.0.1@attacker.example", 403),
        ("", 403),
    ],
)
def test_the_page_goes_by_its_own_names_alone(host, status, page):
    """Else another site's pages could ask it in a visitor's browser: DNS rebinding."""
    address, _ = page
    headers = {"Host": host.format(port=httpx.URL(address).port)}
    paths = ("", "config", "gradio_api/app_id", "gradio_api/queue/data?session_hash=a", "theme.css")
    for path in paths[: 3 if status == 200 else 5]:
        answer = httpx.get(f"{address}{path}", headers=headers)
        assert answer.status_code == status
    if status != 200:
        assert "--allow-host" in answer.text
        assert upload(address, ("a.png", b"0"), **headers).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://{host}", 200),
        ("http://127.0.0.1:1", 403),
        ("http://localhost:1", 403),
        ("http://[::1", 403),
        ("https://example.org", 200),
        ("http://attacker.example", 403),
        ("http://192.168.1.7", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_sites_cannot_ask(origin, status, page):
    address, _ = page
    origin = origin.format(host=httpx.URL(address).netloc.decode())
    assert upload(address, ("a.png", b"0"), Origin=origin).status_code == status
    assert httpx.get(f"{address}config", headers={"Origin": origin}).status_code == status


def test_an_upload_is_limited_as_a_whole(page):
    address, folder = page

    def stored():
        return {os.path.join(at, name) for at, _, names in os.walk(folder) for name in names}

    before = stored()
    assert upload(address, ("a.png", b"1" * 300_001)).status_code == 413
    many = [(f"{i}.png", bytes([i]) * 100_000) for i in range(8)]
    assert upload(address, *many).status_code == 413
    # Nor is there a way around: a length that is not told, or told wrongly.
    raw = {"Content-Type": "multipart/form-data; boundary=b"}
    url = f"{address}gradio_api/upload"
    assert httpx.post(url, content=iter([b"0" * 1000]), headers=raw).status_code == 411
    both = {**raw, "Content-Length": "100", "Transfer-Encoding": "chunked"}
    assert httpx.post(url, content=iter([b"0" * 1000]), headers=both).status_code == 411
    join = f"{address}gradio_api/queue/join"
    large = {"data": ["x" * 200_000], "fn_index": 0, "session_hash": "s"}
    assert httpx.post(join, json=large).status_code == 413
    assert stored() == before
    assert upload(address, ("a.png", b"2" * 290_000)).status_code == 200
    assert len(stored()) == len(before) + 1


def test_uploads_are_limited_together(page):
    address, folder = page
    room = 50 * MAX_UPLOAD_MB * 1e6
    with open(os.path.join(folder, "many.png"), "wb") as file:
        file.truncate(int(room))  # a file with a hole, which takes no space
    try:
        answer = upload(address, ("a.png", picture()))
        assert answer.status_code == 507 and "no room" in answer.text
    finally:
        os.remove(file.name)
    assert upload(address, ("a.png", picture())).status_code == 200
