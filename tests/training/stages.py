"""Recipes of the three stages for tiny models: a few steps each, in float32."""

import dataclasses
from typing import Any

from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, Optimisation, Phase, PretrainRecipe

STEPS = Optimisation(steps=8, batch_tokens=400, warmup=2, save_every=3, bf16=False, learning_rate=3e-3)
ARCHITECTURE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
PRETRAIN = PretrainRecipe(STEPS, ("rivers",), ARCHITECTURE, vocab_size=400, window=32)
AUTOENCODE = AutoencodeRecipe(
    STEPS, ("rivers",), (Phase((1,), (16, 16), 0.0, 3), Phase((1, 4), (8, 60))), encoder_layers=1, window=48,
    train_decoder=True, tasks={"restore": 0.5, "cloze": 0.5},
    templates={
        "restore_template": "{memory}<|restore|>",
        "answer_template": "<|user|>{passages}Question: {question}<|assistant|>",
    },
)  # fmt: skip
KEFT_PHASES = (Phase((1,), (16, 24), 0.0, 3), Phase((1, 4), (16, 48)))
KEFT = KeftRecipe(STEPS, ("rivers",), ("rivers.train",), KEFT_PHASES, {"restore": 0.2, "question": 0.8})


def changed(recipe: Any, **settings: Any) -> Any:
    """A recipe with other settings, those of its optimisation among them."""
    own = {name: value for name, value in settings.items() if hasattr(recipe, name)}
    steps = {name: value for name, value in settings.items() if name not in own}
    return dataclasses.replace(recipe, **own, optimisation=dataclasses.replace(recipe.optimisation, **steps))
