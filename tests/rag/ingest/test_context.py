from rag.ingest.context import embedding_text

FACT = "The oldest tide mill stands in Ireland."


def test_what_is_embedded_begins_with_a_short_context():
    assert embedding_text("mills.pdf", ("Water", "Race"), FACT) == f"mills\nWater > Race\n{FACT}"
    assert embedding_text("mills", (), FACT) == f"mills\n{FACT}"
    assert len(embedding_text("n" * 255, ("h" * 200,) * 6, FACT)) < 400
