import pytest
import torch

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import RateError
from gmsa_rag.evaluation.icae import ICAECompressor
from gmsa_rag.modeling.compressor import Compressor

LENGTHS, RATES = [7, 3, 8], [2, 4, 8]
COUNTS = [4, 1, 1]


@pytest.fixture(scope="module", params=["llama", "gemma"])
def icae(request, make_base) -> ICAECompressor:
    torch.manual_seed(3)
    return ICAECompressor.from_base(make_base(request.param), GMSAConfig(encoder_layers=2), 4).eval()


@pytest.fixture(scope="module")
def input_ids() -> torch.Tensor:
    return torch.randint(0, 300, (3, 8), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_row_is_read_with_its_memory_tokens_behind_it(icae, input_ids):
    embeddings = icae.encoder.get_input_embeddings()
    first, second = icae.mlp[0], icae.mlp[2]
    expected = []
    for row, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        read = torch.cat([embeddings(input_ids[row, :length]), icae.memory_tokens[:count]])
        states = icae.encoder(inputs_embeds=read[None]).last_hidden_state[0, -count:]
        inner = torch.nn.functional.gelu(states @ first.weight.T + first.bias)
        expected.append(inner @ second.weight.T + second.bias)
    torch.testing.assert_close(icae(input_ids, LENGTHS, RATES), torch.cat(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_single_calls(icae, input_ids):
    rows = zip(input_ids.split(1), LENGTHS, RATES, strict=True)
    single = [icae(ids[:, :length], [length], [rate]) for ids, length, rate in rows]
    assert [len(soft) for soft in single] == COUNTS
    torch.testing.assert_close(icae(input_ids, LENGTHS, RATES), torch.cat(single), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_takes_as_many_positions_as_group_merging(icae, input_ids, make_base):
    merging = Compressor.from_base(make_base(), GMSAConfig(encoder_layers=2, lsa_layers=1))
    assert icae(input_ids, LENGTHS, RATES).shape == merging(input_ids, LENGTHS, RATES).shape


def test_what_a_memory_token_says_depends_on_all_of_the_passage(icae, input_ids):
    with torch.no_grad():
        before = icae(input_ids[:1], [8], [2])
        changed = input_ids[:1].clone()
        changed[0, -1] += 1
        assert (icae(changed, [8], [2]) - before).abs().amax(dim=1).min() > 1e-4


def test_only_the_memory_tokens_that_were_used_learn(icae, input_ids):
    icae(input_ids[:1], [7], [4]).square().sum().backward()
    used = icae.memory_tokens.grad.abs().sum(dim=1) > 0
    icae.zero_grad()
    assert used.tolist() == [True, True, False, False]


def test_more_soft_tokens_than_the_table_has_are_refused(icae, input_ids):
    with pytest.raises(RateError, match="at most 4 soft tokens"):
        icae(input_ids[:1], [5], [1])
