import pytest
import torch
from transformers import AutoModelForCausalLM

from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import load_checkpoint, read_config, verify_fingerprint
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.keft import keft
from gmsa_rag.training.logs import read_log
from gmsa_rag.training.loop import Run
from gmsa_rag.training.recipe import Distillation
from gmsa_rag.training.tasks import Tasks
from tests.training.stages import AUTOENCODE, KEFT, changed

LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.1)
PASSAGE = "The river Oder joined the Elbe near Fort Seine in 1600."
NORMS = {"input_layernorm", "post_attention_layernorm", "norm"}
QKV, MLP = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj", "down_proj"}
LEARNING = {
    "qkv": QKV, "attention": QKV | {"o_proj"}, "lora": QKV | {"o_proj"} | MLP, "all": QKV | {"o_proj"} | MLP | NORMS
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(runs, data, tmp_path_factory):
    """A checkpoint of adapters."""
    recipe = changed(AUTOENCODE, lora=LORA, train_decoder=False, save="adapters")
    return autoencode(recipe, runs[1], data, tmp_path_factory.mktemp("adapters") / "ae")


def different(before, after):
    """Names of a decoder's weights that differ."""
    old, new = before.decoder.state_dict(), after.decoder.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def check_reads_memories_of(before, after):
    memory = before.compress(PASSAGE, rate=4)
    assert torch.equal(memory.soft_tokens, after.compress(PASSAGE, rate=4).soft_tokens)
    after.restore(memory)  # another decoder, the same compressor: no FingerprintError


def test_compressor_and_embeddings_are_left_alone(runs):
    _, _, compressed, final = runs
    before, after = GMSA.from_pretrained(compressed), GMSA.from_pretrained(final)
    assert before.fingerprint == after.fingerprint == verify_fingerprint(final)
    assert torch.equal(before.decoder.get_input_embeddings().weight, after.decoder.get_input_embeddings().weight)
    check_reads_memories_of(before, after)


@pytest.mark.parametrize("trainable", LEARNING)
def test_what_learns_is_what_the_recipe_names(runs, data, tmp_path, trainable):
    recipe = changed(KEFT, trainable=trainable, lora=LORA if trainable == "lora" else None)
    out = keft(recipe, runs[2], data, tmp_path / "keft")
    before, after = GMSA.from_pretrained(runs[2]), GMSA.from_pretrained(out)
    expected = {name for name in before.decoder.state_dict() if name.split(".")[-2] in LEARNING[trainable]}
    assert len(expected) >= 6
    assert different(before, after) == expected
    assert after.fingerprint == before.fingerprint
    check_reads_memories_of(before, after)


def test_a_decoder_in_full_goes_beside_adapters(adapters, data, tmp_path):
    out = keft(KEFT, adapters, data, tmp_path / "keft")
    before, after = GMSA.from_pretrained(adapters), GMSA.from_pretrained(out)
    assert after.fingerprint == before.fingerprint == verify_fingerprint(out)
    assert read_config(out).decoder_weights == "full"
    assert different(before, after)
    check_reads_memories_of(before, after)


def test_lora_of_the_decoder_goes_beside_adapters(runs, adapters, data, tmp_path):
    recipe = changed(KEFT, trainable="lora", lora=LORA, save="adapters")
    out = keft(recipe, adapters, data, tmp_path / "adapters")
    merged = GMSA.from_pretrained(keft(changed(recipe, save="full"), adapters, data, tmp_path / "full"))
    before, after = GMSA.from_pretrained(adapters), GMSA.from_pretrained(out)
    assert after.fingerprint == before.fingerprint == merged.fingerprint == verify_fingerprint(out)
    assert read_config(out).decoder_weights == "lora" and not (out / "decoder").exists()
    check_reads_memories_of(before, after)
    assert {name.split(".")[-2] for name in different(before, after)} == LEARNING["lora"]
    for name, weight in merged.decoder.state_dict().items():
        torch.testing.assert_close(after.decoder.state_dict()[name], weight, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def in_bfloat16(runs, data, tmp_path_factory):
    """A checkpoint whose files are in bfloat16."""
    recipe = changed(AUTOENCODE, frozen_dtype="bfloat16", bf16=True)
    return autoencode(recipe, runs[1], data, tmp_path_factory.mktemp("bfloat16") / "ae")


@pytest.mark.parametrize("settings", [{}, {"trainable": "lora", "lora": LORA}, {"trainable": "qkv"}])
def test_frozen_weights_can_be_kept_in_bfloat16(in_bfloat16, data, tmp_path, settings):
    out = keft(changed(KEFT, frozen_dtype="bfloat16", bf16=True, **settings), in_bfloat16, data, tmp_path / "keft")
    before, after = (GMSA.from_pretrained(path, dtype="bfloat16") for path in (in_bfloat16, out))
    assert after.fingerprint == before.fingerprint == verify_fingerprint(out)
    assert load_checkpoint(out).decoder.dtype == torch.bfloat16
    expected = LEARNING[settings.get("trainable", "all")]
    assert {name.split(".")[-2] for name in different(before, after)} <= expected
    assert different(before, after)
    check_reads_memories_of(before, after)


def test_a_compressor_in_bfloat16_can_be_trained_with_in_float32(in_bfloat16, data, tmp_path):
    out = keft(changed(KEFT, bf16=True), in_bfloat16, data, tmp_path / "keft")
    assert read_config(out).fingerprint == read_config(in_bfloat16).fingerprint == verify_fingerprint(out)
    assert load_checkpoint(out).decoder.dtype == torch.float32


def test_a_compressor_is_never_rounded(runs, data, tmp_path):
    with pytest.raises(ConfigError, match="a compressor in float32, which would be rounded"):
        keft(changed(KEFT, frozen_dtype="bfloat16", bf16=True), runs[2], data, tmp_path / "keft")


def test_gradient_checkpointing_gives_the_same_losses(runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gmsa_rag.training.loop.LOG_EVERY", 1)
    losses = []
    for name, on in (("plain", False), ("checkpointed", True)):
        keft(changed(KEFT, gradient_checkpointing=on), runs[2], data, tmp_path / name)
        losses.append([row["loss"] for row in read_log(tmp_path / name / "log.jsonl")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_passages_are_whole_in_the_last_phase_alone(runs, data, tmp_path, monkeypatch):
    made = []

    class Recorded(Tasks):
        def draw(self, weights):
            made.append((self.windows, self.whole_passages, self.own_wording))
            return super().draw(weights)

    monkeypatch.setattr("gmsa_rag.training.keft.Tasks", Recorded)
    keft(changed(KEFT, whole_passages=0.4, own_wording=0.7), runs[2], data, tmp_path / "keft")
    assert made == [((16, 24), 0.0, 0.7), ((16, 48), 0.4, 0.7)]


def test_a_teacher_stays_as_it_was(runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr("gmsa_rag.training.loop.LOG_EVERY", 1)
    kept = []
    train = Run.train

    def watched(self, make):
        kept.append(self.objective.teacher)
        assert not any(parameter.requires_grad for parameter in self.objective.teacher.parameters())
        position = train(self, make)
        assert not self.objective.teacher.training
        return position

    plain = keft(KEFT, runs[2], data, tmp_path / "plain")
    monkeypatch.setattr(Run, "train", watched)
    out = keft(changed(KEFT, distillation=Distillation(0.5, 2.0)), runs[2], data, tmp_path / "taught")
    before, after = GMSA.from_pretrained(runs[2]), GMSA.from_pretrained(out)
    for name, weight in before.decoder.state_dict().items():
        assert torch.equal(weight, kept[0].state_dict()[name]), name
    assert different(before, after) and different(GMSA.from_pretrained(plain), after)
    assert after.fingerprint == before.fingerprint
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("plain", "taught")]
    assert losses[0][0] != pytest.approx(losses[1][0], abs=1e-3)


def test_it_learns_to_say_that_the_answer_is_not_there(runs, data, tmp_path):
    recipe = changed(
        KEFT, unanswerable=1.0, no_answer="unsaid", tasks={"question": 1.0}, steps=120,
        phases=KEFT.phases[1:], save_every=100, learning_rate=1e-2,
    )  # fmt: skip
    out = keft(recipe, runs[2], data, tmp_path / "keft")
    assert read_config(out).no_answer == "unsaid"
    gmsa = GMSA.from_pretrained(out)
    passages = gmsa.compress(["The river Rhine joined the Loire near Fort Elbe in 1700."], rate=4)
    assert gmsa.answer("When did they join?", passages).abstained
    before = GMSA.from_pretrained(runs[2])
    assert not before.answer("When did they join?", before.compress([PASSAGE], rate=4)).abstained


def test_without_words_of_its_own_a_recipe_keeps_the_checkpoints(runs, data, tmp_path):
    config = read_config(keft(changed(KEFT, steps=1), runs[2], data, tmp_path / "keft"))
    assert config.no_answer == read_config(runs[2]).no_answer


def test_adapters_of_a_checkpoint_in_full_are_a_typed_error(runs, data, tmp_path):
    with pytest.raises(ConfigError, match="on one in full"):
        keft(changed(KEFT, trainable="lora", lora=LORA, save="adapters"), runs[2], data, tmp_path / "keft")
    assert not (tmp_path / "keft").exists()


def test_adapters_of_what_is_no_lora_are_a_typed_error(adapters, data, tmp_path):
    with pytest.raises(ConfigError, match="trainable: all, on one of adapters"):
        keft(changed(KEFT, save="adapters"), adapters, data, tmp_path / "keft")


def test_missing_questions_are_a_typed_error_and_the_recipe_can_be_mended(runs, data, tmp_path):
    with pytest.raises(DataError, match=r"lakes\.train"):
        keft(changed(KEFT, questions=("lakes.train",)), runs[2], data, tmp_path / "keft")
    keft(changed(KEFT, steps=1), runs[2], data, tmp_path / "keft")
    AutoModelForCausalLM.from_pretrained(tmp_path / "keft" / "checkpoint" / "decoder")


def test_unanswerable_questions_need_something_to_say(runs, data, tmp_path):
    with pytest.raises(ConfigError, match="no_answer: expected what to say"):
        keft(changed(KEFT, unanswerable=0.1), runs[2], data, tmp_path / "keft")
    assert not (tmp_path / "keft").exists()
