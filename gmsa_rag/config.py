"""GMSAConfig: what a checkpoint says of itself."""

from transformers import PreTrainedConfig

RESTORE_TEMPLATE = "{memory}\nRestate the aforementioned text.\n"
PASSAGE_TEMPLATE = "[{number}] {title}\n{passage}\n"
ANSWER_TEMPLATE = "{passages}\nQuestion: {question}\nAnswer:"


class GMSAConfig(PreTrainedConfig):
    """Settings of a GMSA checkpoint, its `config.json`.

    Args:
        encoder_layers: Decoder layers of the base that the encoder copies, >= 1.
        lsa_layers: Decoder layers that the layer semantic alignment copies, >= 1.
        hidden_size: Width of a soft token, as the decoder's embeddings.
        window: Longest run of tokens the compressor was trained on; longer passages are cut.
        rates: Rates the checkpoint was trained at. Others work, with less quality.
        encoder_norm: Whether the base's final norm is applied before group merging.
        lsa_norm: Whether the final norm is applied after the layer semantic alignment.
        shared_embeddings: Whether the compressor reads the decoder's embedding table.
        restore_template: Prompt of a restoration; `{memory}` is where the memory goes.
        passage_template: One passage in an answer prompt: `{number}`, `{title}`, `{passage}`.
        answer_template: The answer prompt: `{passages}`, `{question}`.
        cites: Whether the decoder was trained to end an answer with the numbers of its passages, as in `[2]`.
        no_answer: What the decoder was trained to say where the passages do not hold the answer, "" if it was not.
        compressor_dtype: Of the compressor's weights in the files, "" while it is unsaved.
        base: Directory, hub id or GGUF file of the causal LM that the adapters stand on, "" where all weights are in
            the files.
        base_revision: Commit of a hub id.
        lora_rank: Of the encoder's LoRA, 0 without a base.
        lora_alpha: Its updates are scaled by lora_alpha / lora_rank.
        decoder_weights: "full" for `decoder/`; "base" where the decoder is the base; "lora" for the base with LoRA.
        decoder_lora_rank: Of the decoder's LoRA, 0 without.
        decoder_lora_alpha: As lora_alpha.
        fingerprint: SHA-256 of the compressor as saved, "" while it is untrained or unsaved.
        format_version: Version of the checkpoint's layout.
    """

    model_type = "gmsa"

    encoder_layers: int = 8
    lsa_layers: int = 1
    hidden_size: int = 0
    window: int = 512
    rates: list[int] | None = None
    encoder_norm: bool = True
    lsa_norm: bool = True
    shared_embeddings: bool = True
    restore_template: str = RESTORE_TEMPLATE
    passage_template: str = PASSAGE_TEMPLATE
    answer_template: str = ANSWER_TEMPLATE
    cites: bool = False
    no_answer: str = ""
    compressor_dtype: str = ""
    base: str = ""
    base_revision: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 0.0
    decoder_weights: str = "full"
    decoder_lora_rank: int = 0
    decoder_lora_alpha: float = 0.0
    fingerprint: str = ""
    format_version: int = 1
