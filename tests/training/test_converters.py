import json

import pytest

from gmsa_rag.training.converters import DATASETS, multi_hop, multi_news, narrativeqa, natural_questions, squad

SQUAD = {
    "id": "56be", "title": "Saint_Helena", "context": "Longwood House stands on Saint Helena.",
    "question": " Where does it stand? ",
    "answers": {"text": ["Saint Helena", "Saint Helena"], "answer_start": [25, 25]},
}  # fmt: skip

# Two paragraphs and a table: tokens 4 to 13 are the second paragraph, token 16 is in the table.
TOKENS = [
    "<P>", "Elbe", "</P>", "<P>", "The", "Rhine", "``", "ends", ",", "in", "<B>", "Hook", "</B>", "''", "</P>",
    "<Table>", "1230", "</Table>",
]  # fmt: skip
NQ = {
    "id": "797803",
    "document": {
        "title": "Rhine", "url": "", "html": "",
        "tokens": {"token": TOKENS, "is_html": [token[0] == "<" for token in TOKENS]},
    },
    "question": {"text": "where does the rhine end", "tokens": []},
    "annotations": {
        "id": ["1", "2"],
        "long_answer": [{"start_token": 3, "end_token": 15}, {"start_token": 3, "end_token": 15}],
        "short_answers": [
            {"start_token": [], "end_token": [], "start_byte": [], "end_byte": [], "text": []},
            {"start_token": [9, 4], "end_token": [12, 6], "start_byte": [0, 0], "end_byte": [0, 0], "text": ["", ""]},
        ],
        "yes_no_answer": [-1, -1],
    },
}  # fmt: skip

HOTPOT = {
    "id": "5a7a", "question": "Which river?", "answer": "Elbe", "type": "bridge", "level": "hard",
    "supporting_facts": {"title": ["Fort", "River", "Fort"], "sent_id": [0, 1, 1]},
    "context": {
        "title": ["Other", "Fort", "River"],
        "sentences": [["Nothing."], ["A fort.", " It is old."], ["A river.", " It is the Elbe."]],
    },
}  # fmt: skip
PAIRS = HOTPOT | {
    "context": [list(pair) for pair in zip(*HOTPOT["context"].values(), strict=True)],
    "supporting_facts": [["Fort", 0], ["River", 1], ["Fort", 1]],
}

NARRATIVE = {
    "document": {"id": "fb", "kind": "gutenberg", "text": "The whole story.",
                 "summary": {"text": "Ann wins.", "tokens": ["Ann"], "url": "", "title": "A Story"}},
    "question": {"text": "Who wins?", "tokens": ["Who"]},
    "answers": [{"text": "Ann", "tokens": ["Ann"]}, {"text": "Ann does", "tokens": ["Ann"]}],
}  # fmt: skip


def test_squad():
    assert squad(SQUAD) == {
        "id": "56be", "question": "Where does it stand?", "answers": ["Saint Helena"], "gold": [0],
        "contexts": [{"title": "Saint Helena", "text": "Longwood House stands on Saint Helena."}],
    }  # fmt: skip
    with pytest.raises(ValueError, match="no answer"):
        squad(SQUAD | {"answers": {"text": [], "answer_start": []}})


def test_natural_questions_take_the_paragraph_around_the_answer():
    row = natural_questions(NQ)
    assert row["contexts"] == [{"title": "Rhine", "text": 'The Rhine "ends, in Hook"'}]
    assert row["answers"] == ["in Hook", "The Rhine"]
    assert (row["id"], row["question"], row["gold"]) == ("797803", "where does the rhine end", [0])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"start_token": [], "end_token": []}, "no short answer"),
        ({"start_token": [16], "end_token": [17]}, "no paragraph"),
    ],
)
def test_natural_questions_without_a_paragraph_or_answer_are_refused(spans, message):
    notes = {"id": ["1"], "long_answer": [{}], "short_answers": [spans], "yes_no_answer": [-1]}
    with pytest.raises(ValueError, match=message):
        natural_questions(NQ | {"annotations": notes})


def test_natural_questions_of_retrieved_passages():
    contexts = [{"title": "Elbe", "text": "It ends in the sea."}, {"title": "Rhine", "text": "It ends at Hook."}]
    row = {"question": "where does the rhine end", "answer": ["Hook", "Holland"], "ctxs": contexts}
    converted = natural_questions(row)
    assert (
        converted["gold"] == [1] and converted["contexts"] == contexts and converted["answers"] == ["Hook", "Holland"]
    )
    with pytest.raises(ValueError, match="no context holds"):
        natural_questions(row | {"answer": ["Basel"]})


@pytest.mark.parametrize(
    "row",
    [
        HOTPOT,
        PAIRS,
        PAIRS | {"context": json.dumps(PAIRS["context"]), "supporting_facts": json.dumps(PAIRS["supporting_facts"])},
        PAIRS | {"context": [[json.dumps(title), json.dumps(texts)] for title, texts in PAIRS["context"]]},
    ],
    ids=["columns", "lists", "texts", "lists of texts"],
)
def test_multi_hop_puts_the_gold_paragraph_with_the_answer_first(row):
    assert multi_hop(row) == {
        "id": "5a7a", "question": "Which river?", "answers": ["Elbe"], "gold": [2, 1],
        "contexts": [
            {"title": "Other", "text": "Nothing."},
            {"title": "Fort", "text": "A fort. It is old."},
            {"title": "River", "text": "A river. It is the Elbe."},
        ],
    }  # fmt: skip


def test_multi_hop_rows_without_gold_or_answer_are_refused():
    with pytest.raises(ValueError, match="no paragraph is named"):
        multi_hop(HOTPOT | {"supporting_facts": {"title": ["None"], "sent_id": [0]}})
    with pytest.raises(ValueError, match="no answer"):
        multi_hop(HOTPOT | {"answer": None})


def test_a_title_that_begins_like_json_stays():
    context = [['"Heroes" (album)', ["By Bowie."]]]
    row = PAIRS | {"context": context, "supporting_facts": [['"Heroes" (album)', 0]], "answer": "Bowie"}
    assert multi_hop(row)["contexts"] == [{"title": '"Heroes" (album)', "text": "By Bowie."}]


def test_narrativeqa_asks_the_summary():
    assert narrativeqa(NARRATIVE) == {
        "id": None, "question": "Who wins?", "answers": ["Ann", "Ann does"], "gold": [0],
        "contexts": [{"title": "A Story", "text": "Ann wins."}],
    }  # fmt: skip


def test_multi_news_is_split_into_its_articles():
    row = multi_news({"document": "One. NEWLINE_CHAR Two. ||||| Three. |||||", "summary": "\u2013 All of it."})
    assert [context["text"] for context in row["contexts"]] == ["One. \n Two.", "Three."]
    assert row["gold"] == [0, 1] and row["answers"] == ["All of it."]
    for bad, message in (
        ({"document": " ||||| ", "summary": "x"}, "no article"),
        ({"document": "x", "summary": ""}, "no a"),
    ):
        with pytest.raises(ValueError, match=message):
            multi_news(bad)


def test_the_names_are_those_of_the_help():
    from gmsa_rag.training.data_commands import DATASET_NAMES

    assert all(name in DATASET_NAMES for name in DATASETS) and len(DATASETS) == 6
