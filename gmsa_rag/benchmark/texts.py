"""Passages to measure with. What is read does not matter, only how long it is."""

from gmsa_rag.errors import InputError
from gmsa_rag.inference.tokens import TokenCodec

# Written for this measurement.
TEXT = (
    "A lighthouse is a tower that carries a lamp to guide ships along a coast at night. Early ones burned wood or "
    "coal in an open brazier, later ones oil behind glass, and most are lit by electric lamps today. A Fresnel lens, "
    "built from rings of prisms, gathers the light into a narrow beam that can be seen from more than thirty "
    "kilometres away. Each lighthouse flashes in a rhythm of its own, so that sailors can tell from a chart where "
    "they are. Keepers once lived in the tower to trim the wicks and wind the clockwork that turned the lens; nearly "
    "all of the lights now run by themselves. "
    "Bread is baked from a dough of flour and water. Yeast or a sourdough culture ferments the sugars in the flour "
    "and gives off carbon dioxide, which the gluten of wheat or rye holds as bubbles, so that the loaf rises. "
    "Kneading lines the gluten up in long strands and makes the dough elastic. In the oven the starch swells and "
    "sets, the crust turns brown at about a hundred and fifty degrees, and the water near the surface escapes as "
    "steam. Flat breads are made without any leaven and are older than raised ones; grains of burnt flat bread have "
    "been found at camp sites from before the beginning of farming. "
    "A glacier is a body of ice that forms where more snow falls in winter than melts in summer. Over decades the "
    "lower layers are pressed into dense blue ice, which flows slowly downhill under its own weight, some of them a "
    "few metres and others several kilometres a year. The moving ice carries stones along, grinds the rock below and "
    "leaves valleys with steep sides and flat floors behind. Ridges of rubble, called moraines, mark how far it once "
    "reached. Glaciers hold most of the fresh water on Earth, and the rivers that they feed run high in the warm "
    "months, when rain is scarce. "
    "The electric telegraph sent messages along a wire as pulses of current. In the code named after Samuel Morse "
    "each letter is a pattern of short and long pulses, the commonest letters having the shortest ones. Operators "
    "tapped the pulses with a key, and at the other end an electromagnet marked them on a strip of paper or made them "
    "audible as clicks. Within thirty years of the first public lines, cables crossed the Atlantic Ocean, and a "
    "message that had taken a ship ten days took a few minutes. Railways used it to keep trains apart, and newspapers "
    "to report on the same day what had happened far away. "
)


def make_passages(codec: TokenCodec, count: int, tokens: int) -> list[str]:
    """Passages of about so many tokens, all different.

    Args:
        codec: Whose tokens.
        count: Passages, >= 1.
        tokens: Of each, >= 8; a text decoded and tokenised again may differ by a few.

    Raises:
        InputError: If there is nothing to make.
    """
    if count < 1 or tokens < 8:
        got = f"{count} of {tokens}"
        raise InputError("passages", expected="at least 1 of 8 tokens", got=got, remedy="Ask for more.")
    stream = codec.encode([TEXT])[0]
    passages = []
    for number in range(1, count + 1):
        head = f"Entry {number}. "
        length, start = tokens - len(codec.encode([head])[0]), 37 * number % len(stream)
        repeated = stream * (2 + length // len(stream))
        passages.append(head + codec.decode(repeated[start : start + length]).lstrip())
    return passages
