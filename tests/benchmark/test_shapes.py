import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gmsa_rag.benchmark.shapes import SHAPES, build_base, build_compressor, find_shape, pick_compressor, shape_config
from gmsa_rag.errors import ConfigError
from gmsa_rag.modeling.alignment import cast_weights


def by_hand(vocabulary, width, inner, layers, heads, shared_heads, head_dim, *, head_norms):
    """Weights of a Llama or Qwen3 with tied embeddings."""
    attention = 2 * width * heads * head_dim + 2 * width * shared_heads * head_dim
    layer = attention + 3 * width * inner + 2 * width + (2 * head_dim if head_norms else 0)
    return vocabulary * width + layers * layer + width


# The numbers on the right are those that the models are published with.
@pytest.mark.parametrize(
    ("name", "counted", "known"),
    [
        ("llama-3.2-3b", by_hand(128_256, 3_072, 8_192, 28, 24, 8, 128, head_norms=False), 3_212_749_824),
        ("qwen3-4b", by_hand(151_936, 2_560, 9_728, 36, 32, 8, 128, head_norms=True), 4_022_468_096),
        ("qwen3-0.6b", by_hand(151_936, 1_024, 3_072, 28, 16, 8, 128, head_norms=True), 596_049_920),
        ("gmsa-mini", by_hand(9_216, 576, 768, 8, 9, 3, 64, head_norms=False), 23_012_928),
    ],
)
def test_a_shape_has_as_many_weights_as_the_published_model(name, counted, known):
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(shape_config(SHAPES[name]))
    assert counted == known == sum(weight.numel() for weight in base.parameters())


def test_the_bundled_shape_is_that_of_the_bundled_checkpoint():
    name, compressor, window = pick_compressor(None, None, device="cpu", dtype=torch.float32)
    drawn = build_compressor(SHAPES["gmsa-mini"], device="cpu", dtype=torch.float32)
    assert (name, window) == ("gmsa-mini", SHAPES["gmsa-mini"].window)
    shapes = {name: weight.shape for name, weight in compressor.named_parameters()}
    assert shapes == {name: weight.shape for name, weight in drawn.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_drawn_model_computes_what_its_class_does_with_these_weights(tiny_shape, dtype):
    base = build_base(tiny_shape, device="cpu", dtype=dtype, seed=3)
    plain = type(base)(base.config).eval()
    cast_weights(plain, dtype)
    plain.load_state_dict(base.state_dict())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found, expected = base(ids).logits, plain(ids).logits
    assert torch.equal(found, expected)
    assert found.std() > 0
    assert {weight.dtype for weight in base.parameters()} == {dtype}
    assert dict(base.named_buffers())["model.rotary_emb.inv_freq"].dtype == torch.float32


def test_rotary_frequencies_of_a_scaled_shape_are_its_own():
    frequencies = LlamaRotaryEmbedding(shape_config(SHAPES["llama-3.2-3b"])).inv_freq
    assert frequencies[0] == 1.0
    # The slowest ones turn 32 times slower than the base alone says.
    assert frequencies[-1] == pytest.approx(500_000.0 ** -(126 / 128) / 32, rel=1e-5)


def test_the_seed_decides_the_weights(tiny_shape):
    one, same, other = (
        build_base(tiny_shape, device="cpu", dtype=torch.float32, seed=seed).lm_head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.2)


def test_a_compressor_has_the_layers_asked_for(tiny_shape):
    compressor = build_compressor(tiny_shape, device="cpu", dtype=torch.float32, encoder_layers=1)
    soft_tokens = compressor(torch.arange(9)[None], [9], [4])
    assert soft_tokens.shape == (3, 16) and soft_tokens.isfinite().all()
    assert len(compressor.encoder.layers) == len(compressor.alignment.block.layers) == 1
    name, compressor, window = pick_compressor(None, "tiny", device="cpu", dtype=torch.float32)
    assert (name, len(compressor.encoder.layers), window) == ("tiny", 2, 32)


def test_what_is_no_shape_is_an_error(tiny_shape):
    with pytest.raises(ConfigError, match="qwen3-4b"):
        find_shape("qwen3-5b")
    with pytest.raises(ConfigError, match="1 to 3"):
        build_base(tiny_shape, device="cpu", dtype=torch.float32, layers=4)
    with pytest.raises(ConfigError, match="both"):
        pick_compressor("gmsa-mini", "tiny", device="cpu", dtype=torch.float32)
