"""What the logs of a busy server hold: one structured line a request, and no secret or user's text."""

import json

from tests.e2e.flows import create_chat, create_dataset, documents, ingest, retrieve, upload
from tests.e2e.server_process import ServerProcess

SECRETS = ("plover", "sandpiper", "curlew", "dunlin", "whimbrel", "godwit", "redshank")


def use(server: ServerProcess) -> None:
    """Put a secret word in every place a caller can write to, in calls that succeed and calls that fail."""
    plover, sandpiper, curlew, dunlin, whimbrel, godwit, redshank = SECRETS
    dataset_id = create_dataset(server, f"dataset {plover}")
    ingest(server, dataset_id, {f"{sandpiper}.txt": f"The {curlew} calls at low tide.".encode()})
    retrieve(server, [dataset_id], f"Where is the {dunlin}?")
    broken = upload(server, dataset_id, {f"broken {whimbrel}.pdf": b"%PDF-1.4 " + godwit.encode() * 50})
    server.call("POST", f"/datasets/{dataset_id}/chunks", {"document_ids": broken})
    while next(iter(documents(server, dataset_id)[name]["run"] for name in broken)) == "RUNNING":
        pass
    chat_id = create_chat(server, f"chat {redshank}", [dataset_id])
    question = {"question": f"What does the {curlew} do?", "stream": False}
    assert server.call("POST", f"/chats/{chat_id}/completions", question)[0] == 200
    server.call("GET", f"/datasets?name={godwit}")
    server.call("GET", f"/{whimbrel}/nothing")
    server.call("POST", "/retrieval", {"question": [dunlin]})
    server.call("POST", "/datasets", {"name": plover, redshank: curlew})
    server.request("POST", "/api/v1/datasets", f'{{"name": "{godwit}'.encode(), {"Authorization": f"Bearer {server.api_key}"})
    server.get("/api/v1/datasets", Authorization="Bearer ragflow-" + dunlin * 6)


def test_logs_are_lines_of_json_with_a_request_id_and_without_secrets(start) -> None:
    server = start(environ={"MILLRACE_LOG_LEVEL": "debug"})
    key = server.api_key
    use(server)
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.logs.splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    requests = [line for line in lines if line["event"] == "request"]
    assert len({line["request_id"] for line in requests}) == len(requests) > 10
    assert {200, 400, 401, 404} <= {line["status"] for line in requests}
    for secret in (*SECRETS, key, key[8:30]):
        assert secret not in server.logs, [line for line in server.logs.splitlines() if secret in line][:3]


def test_the_callers_own_request_id_is_kept(start) -> None:
    server = start(ready=False)
    server.get("/api/v1/system/ping", **{"X-Request-Id": "my-own-id-42"})
    assert server.stop() == 0
    assert "my-own-id-42" in server.logs
