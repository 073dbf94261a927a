from gmsa_rag.inference.engine import GMSA


def test_prompt_near_the_end_of_the_window_does_not_cut_its_batch_short(gmsa: GMSA) -> None:
    long = "Danube "
    while gmsa.num_positions(long) < gmsa.decoder_window - 8:
        long += "x"
    prompts = [[long], ["Lise"], ["Vienna"]]
    assert gmsa.generate(prompts, max_new_tokens=20) == [gmsa.generate(p, max_new_tokens=20) for p in prompts]
