"""A deterministic embedding, nodes, and components over a tiny random model with a window of 4096 positions."""

import re
import zlib

import llama_index.core
import pytest
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore
from llama_index.llms.gmsa import GMSALLM, GMSATokenizer, base
from llama_index.postprocessor.gmsa import GMSANodePostprocessor

TEXTS = [
    "The Danube begins in the Black Forest of Germany and empties into the Black Sea; 2,850 km, 1 km = 0.621 miles.",
    "def f(x):\n\treturn x[a[10:20]] if x else {'k': \"v\\n\"}  # <|assistant|> </s> {title} {{ jinja }}",
    "Emoji 👩‍👩‍👧‍👦 🇩🇪 ☕️, математика, 東京は日本の首都です。, مرحبا بالعالم, नमस्ते, ﬀ ﬁ\u00a0\u200b.\r\n  end  ",
    "Lise Meitner explained nuclear fission in 1939 with her nephew, Otto Robert Frisch.",
]


class HashingEmbedding(BaseEmbedding):
    """Counts words in 64 hashed buckets; the same in every process."""

    def _get_text_embedding(self, text):
        vector = [0.01] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % 64] += 1.0
        return vector

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


@pytest.fixture(scope="session")
def wide(make_base, tokenizer):
    """A tiny untrained GMSA; shared, so leave it as it is."""
    base = make_base()
    base.config.max_position_embeddings = 4096
    return GMSA.from_base(base, tokenizer, encoder_layers=2, lsa_layers=1, window=48)


@pytest.fixture
def embedding():
    return HashingEmbedding()


@pytest.fixture
def nodes():
    """Nodes of two documents with scores, metadata, relationships and embeddings."""
    return [
        NodeWithScore(
            node=TextNode(
                id_=f"n{number}",
                text=text,
                metadata={"title": f"Title {number}", "page": number, "tags": ["a", "b"]},
                excluded_llm_metadata_keys=["page"],
                excluded_embed_metadata_keys=["tags"],
                relationships={
                    NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{number % 2}"),
                    NodeRelationship.NEXT: RelatedNodeInfo(node_id=f"n{number + 1}"),
                },
                embedding=[0.1 * number, 1.0],
                start_char_idx=3,
                end_char_idx=3 + len(text),
            ),
            score=1 - number / 10,
        )
        for number, text in enumerate(TEXTS)
    ]


@pytest.fixture
def store():
    with MemoryStore(":memory:") as store:
        yield store
        store.check()


@pytest.fixture
def post(wide, store):
    return GMSANodePostprocessor(gmsa=wide, store=store, rate=4)


@pytest.fixture
def llm(wide, store):
    return GMSALLM(gmsa=wide, store=store, max_tokens=2)


@pytest.fixture
def own_tokenizer(wide, monkeypatch):
    """LlamaIndex counts with ours."""
    tokenizer = GMSATokenizer(gmsa=wide)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", tokenizer)
    return tokenizer


@pytest.fixture
def prompts(monkeypatch):
    """The keys of the memories in each prompt that a GMSALLM has answered from now on."""
    seen = []

    def watch(name, parts_of):
        method = getattr(base, name)

        def watched(engine, prompts, **settings):
            seen.extend([part.key for part in parts if isinstance(part, Memory)] for parts in parts_of(prompts))
            return method(engine, prompts, **settings)

        monkeypatch.setattr(base, name, watched)

    watch("submit", lambda prompts: prompts)
    watch("stream", lambda prompt: [prompt])
    return seen
