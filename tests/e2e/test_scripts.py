"""Names and texts in every script, through a real server: kept as they came, found in their own words, downloaded under their name."""

from unicodedata import normalize
from urllib.parse import quote, unquote

import pytest
import requests

from tests.e2e.flows import create_dataset, documents, ingest, ok, retrieve
from tests.e2e.server_process import ServerProcess

# name -> the name's stem, a text, and a question that shares a word with it
SCRIPTS = {
    "Arabic": ("طاحونة الماء", "تدور عجلة الطاحونة بقوة الماء.", "عجلة الطاحونة"),
    "Hebrew": ("טחנת הקמח", "גלגל הטחנה מסתובב בכוח המים.", "גלגל הטחנה"),
    "Hindi": ("पानी की चक्की", "चक्की का पहिया पानी से घूमता है।", "चक्की का पहिया"),
    "Thai": ("โรงสีน้ำ", "กังหันของโรงสีหมุนด้วยพลังน้ำ", "กังหันของโรงสี"),
    "Korean": ("물레방아", "물레방아의 바퀴는 물의 힘으로 돌아간다.", "물레방아의 바퀴"),
    "Cyrillic": ("Водяная мельница", "Колесо мельницы вращает вода.", "колесо мельницы"),
    "Chinese": ("水车磨坊", "水车的轮子靠水力转动。", "水车的轮子"),
    "emoji joined by zero width": ("👩‍🌾🏳️‍🌈", "The miller 👩‍🌾 opens the sluice.", "Who opens the sluice?"),
    "combining marks": ("Mu\u0308hle Cafe\u0301", "Das Rad der Mu\u0308hle dreht sich.", "Rad der M\u00fchle"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_in_any_script_is_kept_found_and_downloaded(alone: ServerProcess, script: str) -> None:
    stem, text, question = SCRIPTS[script]
    name, content = f"{stem}.txt", text.encode()
    dataset_id = create_dataset(alone, stem)
    (document_id,) = ingest(alone, dataset_id, {name: content})
    assert [dataset["name"] for dataset in ok(alone.call("GET", f"/datasets?name={quote(stem)}"))] == [stem]
    assert documents(alone, dataset_id)[document_id]["name"] == name
    for query in (f"name={quote(name)}", f"keywords={quote(normalize('NFC', stem[:3]))}"):
        assert [found["id"] for found in ok(alone.call("GET", f"/datasets/{dataset_id}/documents?{query}"))["docs"]] == [document_id]
    by_words = retrieve(alone, [dataset_id], question, vector_similarity_weight=0)["chunks"]
    assert [(chunk["document_keyword"], chunk["content"]) for chunk in by_words] == [(name, normalize("NFC", text))]
    path = f"/api/v1/datasets/{dataset_id}/documents/{document_id}"
    reply = requests.get(alone.url + path, headers={"Authorization": f"Bearer {alone.api_key}"}, timeout=30)
    assert (reply.status_code, reply.content) == (200, content)
    assert unquote(reply.headers["Content-Disposition"].partition("filename*=UTF-8''")[2]) == name
