"""rag/flow/mindmap.py: a model's outline as a tree, and a tree without a model."""

import pytest

from rag.errors import ProviderBusy
from rag.flow.mindmap import MAX_NODES, Branch, gen_mindmap, parse_outline
from tests.rag.flow.passages import IRON, WATER, ranked
from tests.rag.flow.scripted import ScriptedModel


def words(text: str) -> int:
    return len(text.split())


def shape(branch: Branch) -> dict[str, object]:
    return {child.id: shape(child) for child in branch.children}


def depth(branch: Branch) -> int:
    return 1 + max(map(depth, branch.children), default=0)


@pytest.mark.parametrize(
    ("outline", "tree"),
    [
        ("- a\n  - b\n    - c\n  - d\n- e", {"a": {"b": {"c": {}}, "d": {}}, "e": {}}),
        ("# Top\ntalk\n## Sub\n* item\n\t* deeper\n## Next", {"Top": {"Sub": {"item": {"deeper": {}}}, "Next": {}}}),
        ("1. **one**\n   - `code` x_1\n2) two [ID:3]", {"one": {"code x_1": {}}, "two": {}}),
        ("no list at all", {}),
        ("", {}),
        ("  - starts deep\n- then not", {"starts deep": {}, "then not": {}}),
    ],
)
def test_an_outline_is_read_by_its_indentation(outline: str, tree: dict[str, object]) -> None:
    assert shape(parse_outline(outline)) == tree


def test_an_outline_without_end_is_bounded() -> None:
    endless = parse_outline("\n".join(" " * n + f"- level {n}" for n in range(50)) + "\n- more" * 5000)
    assert depth(endless) <= 6
    assert sum(1 for _ in str(endless.as_dict()).split("'id'")) <= MAX_NODES + 2


async def test_the_model_draws_from_the_passages() -> None:
    model = ScriptedModel(replies=["- boiling\n  - 100 °C"])
    tree = await gen_mindmap("water", [ranked(WATER)], model, words)
    assert tree.as_dict() == {"id": "root", "children": [{"id": "boiling", "children": [{"id": "100 °C", "children": []}]}]}
    assert WATER in model.asked[0][0].content


async def test_a_model_that_draws_nothing_leaves_the_tree_of_the_documents() -> None:
    tree = await gen_mindmap("water", [ranked(WATER)], ScriptedModel(replies=["I cannot draw."]), words)
    assert list(shape(tree)) == ["physics.md"]


async def test_a_failing_model_is_an_error() -> None:
    with pytest.raises(ProviderBusy):
        await gen_mindmap("water", [ranked(WATER)], ScriptedModel(replies=[ProviderBusy("model scripted is busy")]), words)


async def test_without_a_model_documents_headings_and_key_sentences_make_the_tree() -> None:
    chunks = [ranked(WATER, 0, headings=("Heat", "Boiling")), ranked(IRON, 1, "metals.md")]
    tree = shape(await gen_mindmap("When does water boil and iron melt?", chunks, None, words))
    assert list(tree) == ["physics.md", "metals.md"]
    assert "Water boils at 100 °C at sea level." in tree["physics.md"]["Heat"]["Boiling"]
    assert "Iron melts at 1538 °C." in tree["metals.md"]


async def test_nothing_found_is_a_root_alone() -> None:
    assert (await gen_mindmap("water", [], ScriptedModel(), words)).as_dict() == {"id": "root", "children": []}
