"""What programs get from the server: pictures, streams of them, and jobs."""

import base64
import io
import json
import socket
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from sana_runtime.picture import read_recipe
from sana_runtime.pipeline import Pipeline

from sana_export.cli import main


def png(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="not needed here", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def pipeline(bundle):
    """What paints without the server."""
    with Pipeline.open(bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(pipeline):
    """A function that paints what a seed gives."""
    return lambda seed: pipeline.generate("a star", size=(64, 96), steps=3, seed=seed).pixels


@pytest.fixture
def idle(running):
    yield running
    running.quiet()


def test_the_openai_client_paints_what_the_pipeline_paints(client, expected):
    answer = client.images.generate(prompt="a star", n=2, size="96x64", extra_body={"seed": 7, "steps": 3})
    assert answer.size == "96x64"
    for seed, picture in zip((7, 8), answer.data, strict=True):
        np.testing.assert_array_equal(png(picture.b64_json), expected(seed))


def test_the_openai_client_lists_the_models(client, running):
    (model,) = client.models.list().data
    (told,) = running.get("/v1/capabilities").json()["models"]
    assert model.id == told["id"]
    assert client.images.generate(prompt="a star", model=model.id, extra_body={"steps": 1}).data


def test_the_openai_client_gets_partial_pictures_and_then_the_picture(client, expected):
    body = {"seed": 7, "steps": 3}
    events = list(client.images.generate(prompt="a star", size="96x64", stream=True, partial_images=2, extra_body=body))
    *partial, last = events
    assert last.type == "image_generation.completed"
    np.testing.assert_array_equal(png(last.b64_json), expected(7))
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(png(event.b64_json).shape == (64, 96, 3) for event in partial)


def test_the_openai_client_understands_refusals(client):
    with pytest.raises(openai.UnprocessableEntityError, match="size is 'huge'; give WIDTHxHEIGHT"):
        client.images.generate(prompt="a star", size="huge")
    with pytest.raises(openai.NotFoundError, match="there is no model 'dall-e-3'; this server has"):
        client.images.generate(prompt="a star", model="dall-e-3")


def test_a_job_can_be_watched_and_its_picture_holds_its_recipe(running, tmp_path):
    job = running.begin(prompt="ein 红 star 🙂", seed=5, size="64x64", steps=3)
    done = running.wait(job, "done")
    assert (done["seed"], done["queue_position"], done["seconds_left"], done["error"]) == (5, None, 0.0, None)
    answer = running.get(f"{job}/result")
    assert answer.headers["content-type"] == "image/png"
    (tmp_path / "picture.png").write_bytes(answer.content)
    recipe = read_recipe(tmp_path / "picture.png")
    assert (recipe.prompt, recipe.seed, recipe.size, recipe.steps) == ("ein 红 star 🙂", 5, (64, 64), 3)


SPOKEN = (
    "一只红色的猫坐在蓝色垫子上,旁边有“竹子”🎋",
    "👩‍👩‍👧 et un drapeau 🇩🇪, ❤️ 👍🏽",
    "دائرة حمراء فوق מרובע כחול, e\u0301",
)


@pytest.mark.parametrize("prompt", SPOKEN, ids=["chinese", "emoji", "right-to-left"])
@pytest.mark.parametrize("written", ["as utf-8", "with escapes", "through openai"])
def test_every_script_goes_unharmed_from_a_request_to_what_info_reads(
    running, client, pipeline, tmp_path, capsys, prompt, written
):
    order = {"prompt": prompt, "negative_prompt": prompt[::-1], "seed": 5, "steps": 2, "size": "64x64"}
    if written == "through openai":
        more = {name: order[name] for name in ("negative_prompt", "seed", "steps")}
        answer = client.images.generate(prompt=prompt, size="64x64", extra_body=more)
        content = base64.b64decode(answer.data[0].b64_json)
    else:
        body = json.dumps(order, ensure_ascii=written == "with escapes").encode()
        job = running.post("/v1/jobs", content=body, headers=JSON).headers["location"]
        running.wait(job, "done")
        content = running.get(f"{job}/result").content
    (tmp_path / "picture.png").write_bytes(content)
    told = info(capsys, tmp_path / "picture.png", "--json")
    assert (json.loads(told)["prompt"], json.loads(told)["negative"]) == (prompt, prompt[::-1])
    if prompt.isprintable():  # the terminal gets the rest as escapes, which cannot steer it
        assert prompt in info(capsys, tmp_path / "picture.png")
    ours = pipeline.generate(prompt, negative=prompt[::-1], seed=5, steps=2, size=(64, 64)).pixels
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), ours)


def info(capsys, *arguments):
    """What `sana-export info` prints."""
    with pytest.raises(SystemExit) as left:
        main(["info", *map(str, arguments)])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_seeds_that_nobody_chose_differ(running):
    first, second = (running.wait(running.begin(steps=1), "done")["seed"] for _ in range(2))
    assert first != second


def test_events_tell_the_steps_in_order_and_show_previews(running):
    job, told = running.begin(steps=40), []
    with running.client.stream("GET", f"{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    steps = [each["step"] for each in told if each["stage"] == "paint"]
    assert steps == sorted(steps)
    assert told[-1]["status"] == "done"
    shown = [each["preview"] for each in told if each["preview"]]
    assert all(png(preview.partition(",")[2]).ndim == 3 for preview in shown)


def test_a_queue_has_an_order_an_end_and_a_time_to_come_back(idle, long):
    first = idle.begin(**long)
    idle.wait(first, "painting")
    waiting = [idle.begin() for _ in range(3)]
    assert [idle.get(job).json()["queue_position"] for job in (first, *waiting)] == [0, 1, 2, 3]
    refused = idle.post("/v1/jobs", json={"prompt": "a star"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert idle.client.delete(waiting[0]).json()["status"] == "cancelled"
    assert [idle.get(job).json()["queue_position"] for job in waiting] == [None, 1, 2]


def test_a_job_is_cancelled_within_a_step_and_only_once(idle, long):
    job = idle.begin(**long)
    idle.wait(job, "painting")
    assert idle.client.delete(job).status_code == 202
    assert idle.wait(job, "cancelled")["step"] == 0
    assert idle.client.delete(job).status_code == 409
    assert idle.get(f"{job}/result").json()["error"]["code"] == "cancelled"
    assert idle.wait(idle.begin(), "done")["pictures"][0]["index"] == 0


def test_pictures_finished_before_a_cancellation_can_be_had(idle):
    job = idle.begin(steps=300, n=4)
    while not idle.get(job).json()["pictures"]:
        time.sleep(0.02)
    idle.client.delete(job)
    idle.wait(job, "cancelled", "done")
    assert idle.get(f"{job}/result").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_dropped_connection_cancels_the_painting(idle, long, stream):
    body = json.dumps({**long, "stream": stream}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(idle.url.rpartition(":")[2]))) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        while not idle.get("/healthz").json()["painting"]:
            time.sleep(0.02)
    end = time.monotonic() + 30
    while idle.get("/healthz").json()["painting"]:
        assert time.monotonic() < end, "still painting for a client that left"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/jobs/none", 404), ("/v1/jobs/none/result", 404), ("/nothing", 404), ("/v1/jobs", 405)]
)
def test_what_is_not_there_is_told_in_one_shape(running, path, status):
    answer = running.get(path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


def test_a_result_that_is_not_there_yet_says_so(idle, long):
    job = idle.begin(**long)
    assert idle.get(f"{job}/result").json()["error"]["code"] == "not_finished"
    assert idle.get(f"{job}/result?index=9").status_code == 404
    assert idle.get(f"{job}/result?index=-1").status_code == 422


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"prompt": None}, 422, "prompt"),
        ({"prompt": "x" * 9000}, 422, None),
        ({"prompt": "\ud800"}, 422, None),
        ({"prompt": 7}, 422, "prompt"),
        ({"size": "100x100"}, 422, None),
        ({"size": "99999x99999"}, 422, None),
        ({"steps": 0}, 422, "steps"),
        ({"steps": True}, 422, "steps"),
        ({"steps": 10**6}, 422, "steps"),
        ({"guidance": 31}, 422, "guidance"),
        ({"seed": 2**60}, 422, "seed"),
        ({"n": 5}, 422, "n"),
        ({"solver": "magic"}, 422, "solver"),
        ({"model": "other"}, 404, "model"),
        ({"colour": "red"}, 422, "'colour'"),
    ],
)
def test_what_cannot_be_painted_is_refused_before_it_waits(running, change, status, param):
    answer = running.post("/v1/jobs", content=json.dumps({"prompt": "a star", **change}), headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert "\n" not in answer.json()["error"]["message"]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"prompt": NaN}', JSON, 400),
        (b'{"guidance": 1e999}', JSON, 400),
        (b"[" * 60000, JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b"{" + b" " * 70000 + b"}", JSON, 413),
        (b"{}", {"content-type": "text/plain"}, 415),
    ],
)
def test_a_body_that_is_not_small_json_is_refused(running, body, headers, status):
    assert running.post("/v1/jobs", content=body, headers=headers).status_code == status


def test_options_of_other_servers_are_refused_unless_they_change_nothing(running):
    harmless = {"prompt": "a star", "steps": 1, "response_format": "b64_json", "quality": "auto", "user": "me"}
    assert running.post("/v1/images/generations", json=harmless).status_code == 200
    for name, value in (("response_format", "url"), ("quality", "hd"), ("background", "transparent")):
        answer = running.post("/v1/images/generations", json={**harmless, name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)


def test_metrics_count_what_was_done(running):
    running.wait(running.begin(), "done")
    lines = dict(line.rsplit(" ", 1) for line in running.get("/metrics").text.splitlines() if not line.startswith("#"))
    (model,) = running.get("/v1/capabilities").json()["models"]
    assert int(lines[f'sana_export_pictures_total{{model="{model["id"]}"}}']) >= 1
    assert int(lines['sana_export_requests_total{route="/v1/jobs",status="202"}']) >= 1
    assert lines["sana_export_queue_jobs"] == "0"


def test_two_bundles_are_served_side_by_side(serve, bundle):
    both = serve(bundle)
    first, second = (model["id"] for model in both.get("/v1/capabilities").json()["models"])
    assert first != second
    jobs = [both.begin(model=name, seed=3) for name in (first, second)]
    assert [both.wait(job, "done")["model"] for job in jobs] == [first, second]


def test_a_stopping_server_loses_no_finished_picture(serve, tmp_path, long):
    server = serve()
    done = server.begin()
    server.wait(done, "done")
    fetched = server.begin()
    server.wait(fetched, "done")
    assert server.get(f"{fetched}/result").status_code == 200
    half = server.begin(**long)
    server.wait(half, "painting")
    server.stop()
    names = [path.name for path in (tmp_path / "unfetched").iterdir()]
    assert [name for name in names if name.startswith(done.rpartition("/")[2])]
    assert not [name for name in names if name.startswith(fetched.rpartition("/")[2])]
    assert sorted(path.name for path in server.server.rescued) == sorted(names)


def test_who_waits_when_the_server_stops_is_answered(serve, long):
    server = serve()
    server.begin(**long)
    waiting = server.begin()
    with httpx.Client(base_url=server.url, timeout=60) as other, other.stream("GET", f"{waiting}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        server.server.should_exit = True
        told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert told[-1]["error"]["code"] == "stopping"
